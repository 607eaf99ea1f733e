"""Dense Qwen2, Qwen2.5 and Qwen3 models, as transformers saves them, made into the start of a UniFork model.

    config.json, *.safetensors -> checked -> plan: each parameter from one of Qwen's, or random -> a folder of weights

Qwen's lower layers are the trunk; each branch starts as a copy of the upper ones and of the last norm (specification
of the release, section 2). A branch may have another number of layers than there are upper ones: layer i of B starts as
the upper layer ceil((i + 1) U / B) - 1 of U, both counted from 0. Its last layer is therefore always Qwen's last; a
shallower branch leaves out layers evenly, a deeper one repeats them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ufork.config import merge_overrides
from ufork.convert.config import BranchingConfig
from ufork.convert.foreign_config import ForeignConfig
from ufork.convert.matching import Shape, require_match
from ufork.convert.planned_file import Plan, PlannedTensor, copy_of
from ufork.convert.tensor_folder import TensorFolder, TensorSize
from ufork.convert.vila_u import RQ_HEAD_PREFIX
from ufork.convert.vila_u_config import RqHeadSizes
from ufork.convert.weights_folder import Converted, require_embedded, write_weights_folder
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError
from ufork.model.config import Dimensions, ModelConfig, NumLayers, Width
from ufork.model.initialization import fill_parameter, starts_as_torch
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING, UniFork
from ufork.model.weights import CONFIG_NAME, WeightsConfig, meta_model
from ufork.vocabulary import Task

QWEN_EMBEDDING, QWEN_NORM, QWEN_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""Modules of a decoder layer, with Qwen's names."""
REASONS = {
    r".*\.(experts|shared_expert|gate)\..*": "the model is a mixture of experts, and only dense ones are converted",
    r".*\.lora_[AB]\..*": "the weights are an adapter; merge it into its base model first",
    r".*\.(qweight|qzeros|g_idx|scales|weight_scale.*)": "the weights are quantized; convert the original model",
    r"visual\..*": "the model reads images itself; convert the text model that it is made from",
}
"""Why a tensor is not expected, by a pattern of its name."""


class _Rope(ForeignConfig):
    """Rotary embedding, as transformers 5 saves it."""

    rope_theta: PositiveFloat
    rope_type: Literal["default"] = "default"


class QwenConfig(ForeignConfig):
    """The values of Qwen's `config.json` that decide its weights and what it computes."""

    models = "dense Qwen2, Qwen2.5 and Qwen3 models, as transformers saves them,"
    model_type: Literal["qwen2", "qwen3"]
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Annotated[NumLayers, Field(ge=1)]
    num_attention_heads: Width
    num_key_value_heads: Width
    head_dim: Width | None = None
    vocab_size: Width
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat | None = None
    """As transformers 4 saves it."""
    rope_parameters: _Rope | None = None
    rope_scaling: None = None
    tie_word_embeddings: bool = False
    attention_bias: Literal[False] = False
    """Of Qwen3; Qwen2 has biases without this key."""
    hidden_act: Literal["silu"] = "silu"
    use_sliding_window: Literal[False] = False
    quantization_config: None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """As `ForeignConfig.read`; the rotary embedding is in one of the two forms."""
        config = super().read(folder)
        if config.rope_theta is None and config.rope_parameters is None:
            raise CheckpointError(
                f"{folder / CONFIG_NAME}: has neither rope_theta nor rope_parameters; download it again"
            )
        return config

    def model(self, branching: BranchingConfig) -> ModelConfig:
        """Returns the sizes of the model with branches.

        Raises:
            ConfigError: `branching` does not fit the number of layers.
        """
        first, trunk = branching.separate_first_layers, branching.trunk_layers
        trunk = max(self.num_hidden_layers // 2 - first, 0) if trunk is None else trunk
        upper = self.num_hidden_layers - first - trunk
        if upper < 0:
            raise ConfigError(
                f"separate_first_layers={first} and trunk_layers={trunk}: the text model has {self.num_hidden_layers}"
                " layers; lower one of them"
            )
        depths = {
            f"{task}_layers": upper if (depth := getattr(branching, f"{task}_layers")) is None else depth
            for task in Task
        }
        if not upper and any(depths.values()):
            raise ConfigError(
                f"trunk_layers={trunk}: the trunk has all layers of the text model, so that none is left to start a"
                " branch from; lower it, or give the branches 0 layers"
            )
        values = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "attention_bias": self.model_type != "qwen3",
            "use_qk_norm": self.model_type == "qwen3",
            "separate_first_layers": first,
            "trunk_layers": trunk,
            **depths,
            "tasks": branching.tasks,
            "rope_theta": self.rope_parameters.rope_theta if self.rope_parameters else self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rq_head": branching.rq_head,
            **({"head_dim": self.head_dim} if self.head_dim else {}),
        }
        return ModelConfig.from_mapping(values, origin=CONFIG_NAME)


def convert(source: Path, folder: Path, overrides: Sequence[str] = ()) -> Converted:
    """Writes the start of a UniFork model, made from the Qwen model in `source`, into `folder`.

    Weights keep their precision; what Qwen does not have is in fp32.

    Args:
        source: `config.json`, safetensors files and tokenizer, as transformers saves them.
        folder: that `ufork train` can start from (`model.start`).
        overrides: values of `BranchingConfig`, such as `generation_layers=18`.

    Raises:
        ConfigError: an override is unknown or out of range.
        CheckpointError: the weights are damaged, or not those of a dense Qwen2 or Qwen3 model.
        TokenizerError: there is no tokenizer, or it has more tokens than the model embeds.
        NonFiniteError: a weight is NaN or infinite.
        StorageError: the folder cannot be written.
    """
    branching = BranchingConfig.from_mapping(merge_overrides({}, overrides), origin="ufork convert qwen")
    qwen = QwenConfig.read(source)
    if branching.rq_head_folder is not None:
        branching = _with_rq_head(branching, branching.rq_head_folder, qwen.hidden_size)
    tokenizer = _tokenizer_of(source, qwen)
    config = WeightsConfig(
        model=qwen.model(branching),
        dimensions=Dimensions(
            vocab_size=qwen.vocab_size, **branching.model_dump(include=set(Dimensions.model_fields) - {"vocab_size"})
        ),
    )
    tensors = TensorFolder.open(source)
    require_match(
        tensors.sizes,
        qwen_shapes(qwen, config),
        origin=str(source),
        model=f"the {qwen.model_type} model that {CONFIG_NAME} describes",
        unused=(r".*\.rotary_emb\.inv_freq", *([QWEN_HEAD] if qwen.tie_word_embeddings else [])),
        reasons=REASONS,
    )
    plan = plan_weights(config, tensors, num_layers=qwen.num_hidden_layers, seed=branching.seed)
    if branching.rq_head_folder is not None:
        plan = {**plan, **_planned_rq_head(branching.rq_head_folder, plan)}
    return write_weights_folder(folder, plan, config, tokenizer)


def plan_weights(config: WeightsConfig, tensors: TensorFolder, *, num_layers: int, seed: int) -> Plan:
    """Returns how each parameter of a model is made from the `tensors` of a Qwen model with `num_layers` layers.

    The projector and the RQ head are initialised as for a run with `seed`.
    """
    model = meta_model(config)
    layers = source_layers(config.model, num_layers)
    plan: dict[str, PlannedTensor] = {}
    for name, parameter in model.named_parameters():
        if starts_as_torch(name, model):
            size = TensorSize(tuple(parameter.shape), torch.float32)
            plan[name] = PlannedTensor(size, partial(_random, model, name, size, seed))
        else:
            plan[name] = copy_of(tensors, qwen_name(name, layers))
    return plan


def _with_rq_head(branching: BranchingConfig, folder: Path, body_size: int) -> BranchingConfig:
    """Returns `branching` with the sizes of the RQ head in `folder`, which must be for a body of width `body_size`."""
    sizes = RqHeadSizes.from_yaml(folder / CONFIG_NAME)
    values = {name: getattr(sizes, name) for name in RqHeadSizes.model_fields if name != "body_size"}
    if given := branching.model_fields_set & values.keys():
        raise ConfigError(
            f"{', '.join(sorted(given))}: the RQ head in rq_head_folder={folder} has its own; remove them"
        )
    if sizes.body_size != body_size:
        raise ConfigError(
            f"rq_head_folder={folder}: the RQ head is for a body of width {sizes.body_size}, and the text model's is"
            f" {body_size}; without rq_head_folder the RQ head starts at random, as UniFork's does"
        )
    return branching.model_copy(update=values)


def _planned_rq_head(folder: Path, plan: Plan) -> Plan:
    """Returns the tensors in `folder` for the parameters of the RQ head in `plan`."""
    head = TensorFolder.open(folder)
    shapes = {name: tensor.size.shape for name, tensor in plan.items() if name.startswith(RQ_HEAD_PREFIX)}
    require_match(head.sizes, shapes, origin=str(folder), model=f"the RQ head that {CONFIG_NAME} describes")
    return {name: copy_of(head, name) for name in shapes}


def qwen_name(name: str, layers: dict[str, int]) -> str:
    """Returns the Qwen tensor that a parameter of the body starts as; `layers` as `source_layers` returns them."""
    whole = {TOKEN_EMBEDDING: QWEN_EMBEDDING, TIED_HEAD: QWEN_HEAD}
    if name in whole:
        return whole[name]
    stack, is_layer, inner = name.partition(".layers.")
    if not is_layer:
        return QWEN_NORM
    number, _, inner = inner.partition(".")
    module, _, kind = inner.rpartition(".")
    return f"model.layers.{layers[f'{stack}.layers.{number}']}.{LAYER_NAMES[module]}.{kind}"


def source_layers(config: ModelConfig, num_layers: int) -> dict[str, int]:
    """Returns, by the name of each layer of the model, which layer of Qwen's `num_layers` it starts as."""
    first, trunk = config.separate_first_layers, config.trunk_layers
    upper = num_layers - first - trunk
    layers = {f"trunk.stack.layers.{i}": first + i for i in range(trunk)}
    for task in config.tasks:
        depth = config.branch_layers(task)
        layers |= {f"trunk.first_stacks.{task}.layers.{i}": i for i in range(first)}
        layers |= {
            f"branches.{task}.stack.layers.{i}": first + trunk - 1 + -(-(i + 1) * upper // depth) for i in range(depth)
        }
    return layers


def qwen_shapes(qwen: QwenConfig, config: WeightsConfig) -> dict[str, Shape]:
    """Returns the shapes of Qwen's tensors: those of a model that is all trunk, by Qwen's names."""
    all_trunk = {"trunk_layers": qwen.num_hidden_layers, "separate_first_layers": 0, "tasks": (Task.UNDERSTANDING,)}
    plain = config.model.model_copy(update={**all_trunk, "understanding_layers": 0})
    model = meta_model(WeightsConfig(model=plain, dimensions=config.dimensions))
    layers = source_layers(plain, qwen.num_hidden_layers)
    return {
        qwen_name(name, layers): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not starts_as_torch(name, model)
    }


def _tokenizer_of(source: Path, qwen: QwenConfig) -> TextTokenizer:
    tokenizer = TextTokenizer.load(source)
    remedy = "add rows to its embedding (transformers' resize_token_embeddings)"
    require_embedded(tokenizer, qwen.vocab_size, origin=source, remedy=remedy)
    return tokenizer


def _random(model: UniFork, name: str, size: TensorSize, seed: int) -> Tensor:
    parameter = torch.empty(size.shape, dtype=size.dtype)
    fill_parameter(parameter, name, model, seed)
    return parameter
