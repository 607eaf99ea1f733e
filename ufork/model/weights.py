"""A model's weights on disk: `model.safetensors` and `config.json` with the sizes, loadable without DeepSpeed."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ufork.config import Config
from ufork.errors import CheckpointError, ConfigError
from ufork.files import make_folder, read_object, write_whole
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.layers.attention_kernels import AttentionKernel, sdpa_attention
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING, UniFork
from ufork.tensor_file import check_header, read_tensors, write_tensors
from ufork.without_initialization import WithoutInitialization

MODEL_PREFIX = "model."
"""Prefix of the model's parameter names inside a training module, and so inside checkpoints."""
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


class WeightsConfig(Config):
    """Contents of `config.json`."""

    model: ModelConfig
    dimensions: Dimensions


def save_weights(folder: Path, weights: dict[str, Tensor], config: WeightsConfig) -> None:
    """Writes both files; a file of the same name is replaced only by a complete one.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written.
        StorageError: the folder cannot be written.
    """
    make_folder(folder)
    write_tensors(folder / WEIGHTS_NAME, weights, durable=True)
    write_whole(folder / CONFIG_NAME, config.model_dump_json(indent=1), durable=True)


def load_weights(folder: Path) -> tuple[dict[str, Tensor], WeightsConfig]:
    """Reads a folder written by `save_weights`.

    Raises:
        CheckpointError: a file is missing, damaged or not ufork's, or they do not belong together.
    """
    config = read_weights_config(folder)
    expected = dict(meta_model(config).named_parameters())
    try:
        return read_tensors(folder / WEIGHTS_NAME, expected), config
    except (ValueError, OSError) as error:
        raise _damaged(folder, error) from None


def check_weights(folder: Path) -> WeightsConfig:
    """Returns the config of a folder written by `save_weights`, whose weights have its names, shapes and types.

    Raises:
        CheckpointError: as `load_weights`, which also reads the weights.
    """
    config = read_weights_config(folder)
    try:
        check_header(folder / WEIGHTS_NAME, dict(meta_model(config).named_parameters()))
    except (ValueError, OSError) as error:
        raise _damaged(folder, error) from None
    return config


def read_weights_config(folder: Path) -> WeightsConfig:
    """Reads the sizes of the model whose weights are in `folder`; raises as `load_weights`."""
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; give a folder of weights, such as RUN/phases/NAME/weights")
    try:
        mapping = read_object(folder / CONFIG_NAME)
    except (ValueError, OSError) as error:
        raise _damaged(folder, error) from None
    try:
        return WeightsConfig.from_mapping(mapping, origin=str(folder / CONFIG_NAME))
    except ConfigError as error:
        raise CheckpointError(f"{error}\nthese weights are not ufork's, or were written by another version") from None


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: damaged weights ({error}); export or convert them again")


def allocate_model(
    config: WeightsConfig, kernel: AttentionKernel, *, device: torch.device, dtype: torch.dtype
) -> UniFork:
    """Returns a model whose memory is allocated and not set: parameters in `dtype`, buffers (the codebook) in fp32.

    `put_weights` and `UniFork.set_codebook` then copy straight to `device`; nothing is initialised at random before.
    """
    model = meta_model(config, kernel)
    _replace_tensors(model, lambda _, meta: torch.empty_like(meta, device=device, dtype=dtype), device=device)
    return model


def adopt_weights(model: UniFork, weights: dict[str, Tensor], *, origin: str) -> None:
    """Makes `weights` the parameters of `model`, which is on the meta device, in fp32 on the CPU; buffers are not set.

    What is in fp32 is not copied. Weights of `load_weights` are read from the file when they are used, and all
    processes of a machine share its pages; a file that is replaced meanwhile does not change them.

    Raises:
        CheckpointError: as `put_weights`.
    """
    _check_weights(model, weights, origin)
    _replace_tensors(model, lambda name, _: weights[name].float(), device=torch.device("cpu"))


def _replace_tensors(model: UniFork, make: Callable[[str, Tensor], Tensor], *, device: torch.device) -> None:
    """Replaces parameters by those that `make` returns for name and parameter, buffers by memory that is not set."""
    made: dict[Tensor, nn.Parameter] = {}  # by the parameter that each replaces, so that tied weights stay one
    for name, parameter in model.named_parameters():
        made[parameter] = nn.Parameter(make(name, parameter))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=device))


def meta_model(config: WeightsConfig, kernel: AttentionKernel = sdpa_attention) -> UniFork:
    """Returns a model without memory, of which only names, shapes and tied weights are real."""
    with torch.device("meta"), WithoutInitialization():
        return UniFork(config.model, config.dimensions, kernel)


def parameter_shapes(config: WeightsConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the parameters of a model; a tied text head is none."""
    return {name: tuple(parameter.shape) for name, parameter in meta_model(config).named_parameters()}


def select_weights(weights: dict[str, Tensor], model: UniFork) -> dict[str, Tensor]:
    """Selects from a whole model's `weights` those that `model`, which may hold some stages only, has."""
    held = {name for name, _ in model.named_parameters()}
    if model.config.tie_word_embeddings and TOKEN_EMBEDDING in weights:
        weights = {**weights, TIED_HEAD: weights[TOKEN_EMBEDDING]}
    return {name: weight for name, weight in weights.items() if name in held}


def put_weights(model: UniFork, weights: dict[str, Tensor], *, origin: str) -> None:
    """Copies `weights` into `model`; their names must be the same.

    Raises:
        CheckpointError: a parameter is missing, unknown, or of another shape.
    """
    _check_weights(model, weights, origin)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _check_weights(model: UniFork, weights: dict[str, Tensor], origin: str) -> None:
    parameters = dict(model.named_parameters())
    if missing := sorted(parameters.keys() ^ weights.keys()):
        raise CheckpointError(
            f"{origin}: {len(missing)} parameter(s) of the model and of the file do not match, first {missing[0]!r};"
            " use the recipe the weights were trained with"
        )
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise CheckpointError(
                f"{origin}: {name} has shape {list(weights[name].shape)}, the model's has {list(parameter.shape)};"
                " use the recipe the weights were trained with"
            )
