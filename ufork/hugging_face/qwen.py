"""Trunk and understanding branch as a plain Qwen2 or Qwen3 model for text, which needs no code of ufork's.

    ufork's names -> Qwen's names; the layers along the path of the task are numbered from 0

Images are left out: their embeddings are no tokens of a text model.
"""

from collections.abc import Iterable
from typing import Any

from ufork.errors import CheckpointError
from ufork.model.config import ModelConfig
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.model.weights import WeightsConfig
from ufork.vocabulary import Task

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
"""Qwen's name of each module of a layer."""


def qwen_names(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """Returns Qwen's name of each of the parameters `names` that lies on the path of understanding."""
    renamed = {TOKEN_EMBEDDING: "model.embed_tokens.weight", "branches.understanding.norm.weight": "model.norm.weight"}
    if not config.tie_word_embeddings:
        renamed[TIED_HEAD] = "lm_head.weight"
    layers = {layer: number for number, layer in enumerate(_path(config))}
    for name in names:
        stack, _, inner = name.partition(".layers.")
        number, _, inner = inner.partition(".")
        if (layer := f"{stack}.layers.{number}") in layers:
            module, _, kind = inner.rpartition(".")
            renamed[name] = f"model.layers.{layers[layer]}.{LAYER_NAMES[module]}.{kind}"
    return renamed


def _path(config: ModelConfig) -> list[str]:
    """Returns the names of the layers along the path of understanding."""
    stacks = {
        f"trunk.first_stacks.{Task.UNDERSTANDING}": config.separate_first_layers,
        "trunk.stack": config.trunk_layers,
        f"branches.{Task.UNDERSTANDING}.stack": config.understanding_layers,
    }
    return [f"{stack}.layers.{number}" for stack, num_layers in stacks.items() for number in range(num_layers)]


def qwen_config(config: WeightsConfig, token_ids: dict[str, int], *, seq_len: int) -> dict[str, Any]:
    """Returns the `config.json` of the text model; `seq_len` is the longest text that it was trained on, in tokens.

    Raises:
        CheckpointError: the layers are neither Qwen2's nor Qwen3's.
    """
    model = config.model
    if model.attention_bias == model.use_qk_norm:
        raise CheckpointError(
            f"attention_bias={model.attention_bias} and use_qk_norm={model.use_qk_norm}: a plain text model has Qwen2's"
            " layers (with biases) or Qwen3's (with norms of queries and keys); export the whole model"
        )
    kind = "qwen3" if model.use_qk_norm else "qwen2"
    return {
        "model_type": kind,
        "architectures": [f"{kind.title()}ForCausalLM"],
        "dtype": "float32",
        **token_ids,
        "vocab_size": config.dimensions.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.path_layers(Task.UNDERSTANDING),
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        **({"attention_bias": False} if model.use_qk_norm else {}),
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "initializer_range": model.initializer_range,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_word_embeddings,
        "use_sliding_window": False,
    }
