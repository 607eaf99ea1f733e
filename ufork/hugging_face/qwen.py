"""Trunk and understanding branch as a plain Qwen2 or Qwen3 model for text, which needs no code of ufork's.

It is the reverse of `ufork convert qwen`. Images are left out: their embeddings are no tokens of a text model.
"""

from collections.abc import Iterable
from typing import Any

from ufork.convert.qwen import qwen_name, source_layers
from ufork.errors import CheckpointError
from ufork.model.config import ModelConfig
from ufork.model.unifork import TOKEN_EMBEDDING
from ufork.model.weights import WeightsConfig
from ufork.vocabulary import Task

_PATH = (
    TOKEN_EMBEDDING,
    f"trunk.first_stacks.{Task.UNDERSTANDING}.",
    "trunk.stack.",
    f"branches.{Task.UNDERSTANDING}.",
)
"""How the names of the parameters along the path of understanding begin."""


def qwen_names(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """Returns Qwen's name of each of the parameters `names` that lies on the path of understanding."""
    layers = source_layers(config, num_layers=config.path_layers(Task.UNDERSTANDING))
    return {name: qwen_name(name, layers) for name in names if name.startswith(_PATH)}


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
