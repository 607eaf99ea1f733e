"""The authors' checkpoints of UniFork, made into a folder of ufork's weights with the image tokenizer.

    DIR: config.json, *.safetensors or global_step*/, vision_tower/config.json -> names and shapes matched
    -> FOLDER: model.safetensors, config.json, text/ (if DIR has a text tokenizer), vision/

The names are in the specification of the release, section 1: trunk and understanding branch have those of a Qwen2
model, RQ head and image tokenizer VILA-U's behind a prefix, generation branch and projector their own.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ufork.config import Config, merge_overrides
from ufork.convert.config import BranchingConfig
from ufork.convert.deepspeed_folder import find_step, gathered_weights
from ufork.convert.matching import Shape, require_match
from ufork.convert.planned_file import copy_of
from ufork.convert.qwen import LAYER_NAMES, QWEN_EMBEDDING, QWEN_HEAD, QwenConfig, qwen_name, source_layers
from ufork.convert.tensor_folder import SUFFIX, TensorFolder
from ufork.convert.vila_u import DEPTH_POSITIONS, RQ_HEAD_PREFIX, TOWER_FOLDER, TokenizerSource
from ufork.convert.vila_u_config import TowerSizes, read_tower_sizes
from ufork.convert.vila_u_names import rq_head_name
from ufork.convert.weights_folder import Converted, require_embedded, write_weights_folder
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError
from ufork.infer.model import VISION_FOLDER
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.weights import CONFIG_NAME, WeightsConfig, parameter_shapes
from ufork.vocabulary import Task

log = logging.getLogger(__name__)

TOWER_PREFIX = "model.vision_tower.vision_tower."
"""What the release puts before VILA-U's names."""
TRAINED_PX, RELEASE_PX = 256, 384
"""Side of the images that the release's image encoder was trained on, and of those that the release reads and draws."""
_GENERATION_LAYERS = f"branches.{Task.GENERATION}.stack.layers."
_OWN_NAMES = {
    "trunk.projector.first.": "model.mm_projector.linear1.",
    "trunk.projector.second.": "model.mm_projector.linear2.",
    "trunk.projector.marks.": "model.mm_projector.token_embedding.",
    f"branches.{Task.GENERATION}.norm.": "model.norm_gen.",
}
"""Other modules that neither Qwen2 nor VILA-U has."""


class ReleaseConfig(QwenConfig):
    """The values of a checkpoint's `config.json` that are read; others are ignored."""

    models = "checkpoints of UniFork's authors"
    model_type: Literal["llava_qwen2"]  # type: ignore[assignment]
    mm_vision_tower: str | None = None
    """Folder with the config of the image tokenizer, relative to the checkpoint unless absolute; TOWER_FOLDER is read
    where that leads nowhere, since it may be a path of the authors' machine."""


class ReleaseOverrides(Config):
    """What a checkpoint is made into."""

    image_px: PositiveInt | None = None
    """Side of the images to read and to draw; default: RELEASE_PX for the release's image encoder, for another one the
    side of the images that it was trained on."""


def convert(source: Path, folder: Path, overrides: Sequence[str] = ()) -> Converted:
    """Writes the checkpoint in `source` into `folder`, which recipes can start from and programs can load.

    Weights keep their precision; those of a DeepSpeed folder are in fp32.

    Args:
        source: `config.json` with safetensors files, or with the `global_step*/` folders of DeepSpeed's ZeRO, which it
            may also be one of; and the config of the image tokenizer in `vision_tower/`.
        folder: where to write.
        overrides: values of `ReleaseOverrides`, such as `image_px=384`.

    Raises:
        ConfigError: an override is unknown or out of range.
        CheckpointError: the files are damaged, or not those of the release.
        NonFiniteError: a weight is NaN or infinite.
        StorageError: the folder cannot be written.
        TokenizerError: the text tokenizer has more tokens than the model embeds.
    """
    chosen = ReleaseOverrides.from_mapping(merge_overrides({}, overrides), origin="ufork convert unifork")
    root = source.parent if find_step(source) == source else source
    release = ReleaseConfig.read(root)
    sizes = _tower_sizes(root, release, chosen)
    config = _weights_config(release, sizes)
    layers = source_layers(config.model, release.num_hidden_layers)
    shapes = parameter_shapes(config)
    with _open_tensors(source, scratch=folder) as tensors:
        tokenizer = TokenizerSource(tensors, sizes.tokenizer, prefix=TOWER_PREFIX)
        require_match(
            tensors.sizes,
            tokenizer.expected | {release_name(n, layers): _release_shape(n, shape) for n, shape in shapes.items()},
            origin=str(source),
            model=f"the UniFork model that {CONFIG_NAME} and the image tokenizer's describe",
            unused=(*tokenizer.unused, *([QWEN_HEAD] if release.tie_word_embeddings else [])),
        )
        if release.tie_word_embeddings:
            _require_tied_head(tensors)
        plan = {name: copy_of(tensors, release_name(name, layers), shape) for name, shape in shapes.items()}
        converted = write_weights_folder(folder, plan, config, _text_tokenizer(root, config.dimensions))
        num_bytes = tokenizer.write(folder / VISION_FOLDER)
    return replace(converted, num_bytes=converted.num_bytes + num_bytes)


def release_tensors(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Returns parameters of a `UniFork`, or their gradients, by the release's names and in its shapes."""
    layers = source_layers(config, config.path_layers(Task.UNDERSTANDING))
    return {
        release_name(name, layers): tensor.view(_release_shape(name, tuple(tensor.shape)))
        for name, tensor in tensors.items()
    }


def release_name(name: str, layers: dict[str, int]) -> str:
    """Returns the release's name of a parameter of `UniFork`; `layers` as `source_layers` returns them."""
    if name.startswith(RQ_HEAD_PREFIX):
        return TOWER_PREFIX + rq_head_name(name.removeprefix(RQ_HEAD_PREFIX))
    if name.startswith(_GENERATION_LAYERS):
        number, _, inner = name.removeprefix(_GENERATION_LAYERS).partition(".")
        module, _, kind = inner.rpartition(".")
        return f"model.gen_fork_layers.{number}.{LAYER_NAMES[module]}.{kind}"
    for own, theirs in _OWN_NAMES.items():
        if name.startswith(own):
            return theirs + name.removeprefix(own)
    return qwen_name(name, layers)


def _release_shape(name: str, shape: Shape) -> Shape:
    return (1, *shape) if name == RQ_HEAD_PREFIX + DEPTH_POSITIONS else shape


def _tower_sizes(root: Path, release: ReleaseConfig, chosen: ReleaseOverrides) -> TowerSizes:
    named = root / (release.mm_vision_tower or TOWER_FOLDER)
    tower = named if named.is_dir() else root / TOWER_FOLDER
    sizes = read_tower_sizes(tower, image_px=chosen.image_px)
    if sizes.rq_head is None:
        raise CheckpointError(f"{tower / CONFIG_NAME}: no rqtransformer; expected the config that VILA-U ships")
    if chosen.image_px is None and sizes.tokenizer.trained_px == TRAINED_PX:
        return read_tower_sizes(tower, image_px=RELEASE_PX)
    return sizes


def _weights_config(release: ReleaseConfig, sizes: TowerSizes) -> WeightsConfig:
    head = sizes.rq_head
    assert head is not None
    if head.body_size != release.hidden_size:
        raise CheckpointError(
            f"hidden_size is {release.hidden_size} in {CONFIG_NAME}, and the image tokenizer's RQ head is for"
            f" {head.body_size}; give both from the same checkpoint"
        )
    return WeightsConfig(
        model=release.model(BranchingConfig(rq_head=head.rq_head)),
        dimensions=head.dimensions.model_copy(update={"vocab_size": release.vocab_size}),
    )


@contextmanager
def _open_tensors(source: Path, *, scratch: Path) -> Iterator[TensorFolder]:
    """Opens the safetensors files of `source`, or what DeepSpeed's tool makes of a ZeRO folder in it."""
    step = find_step(source)
    if step is None or any(source.glob(f"*{SUFFIX}")):
        yield TensorFolder.open(source)
        return
    with gathered_weights(step, scratch=scratch) as path:
        yield TensorFolder.open(path)


def _require_tied_head(tensors: TensorFolder) -> None:
    """Raises CheckpointError if there is a text head that is no copy of the token embedding."""
    if QWEN_HEAD in tensors.sizes and not torch.equal(tensors.read(QWEN_HEAD), tensors.read(QWEN_EMBEDDING)):
        raise CheckpointError(
            f"{tensors.path}: {QWEN_HEAD} is not a copy of {QWEN_EMBEDDING}, although tie_word_embeddings is true;"
            f" set it to false in {CONFIG_NAME} if the head was trained by itself"
        )


def _text_tokenizer(root: Path, dimensions: Dimensions) -> TextTokenizer | None:
    if not any((root / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        log.warning("%s has no text tokenizer: the weights are written without one, and read token ids only", root)
        return None
    tokenizer = TextTokenizer.load(root)
    remedy = "give the tokenizer that the model was trained with"
    require_embedded(tokenizer, dimensions.vocab_size, origin=root, remedy=remedy)
    return tokenizer
