"""Values of a model: defaults that follow from others, and what is stored."""

import json

import pytest

from tests.tiny import DIMENSIONS, QWEN3, tiny_config
from ufork.errors import ConfigError
from ufork.model.config import ModelConfig
from ufork.model.weights import WeightsConfig

KEYS_OF_QWEN2 = {
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "trunk_layers",
    "understanding_layers",
    "generation_layers",
    "tasks",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
    "rq_head",
}


def stored(config: ModelConfig) -> dict:
    return json.loads(WeightsConfig(model=config, dimensions=DIMENSIONS).model_dump_json())["model"]


@pytest.mark.parametrize("values", [{}, {"head_dim": 8, "attention_bias": True, "use_qk_norm": False}])
def test_a_model_of_qwen2s_layers_is_stored_as_before_there_were_others(values):
    assert stored(tiny_config(**values)).keys() == KEYS_OF_QWEN2
    assert tiny_config(**values) == tiny_config()


def test_what_other_layers_have_is_stored_and_read_back():
    assert stored(tiny_config(**QWEN3)).keys() == KEYS_OF_QWEN2 | QWEN3.keys()
    assert ModelConfig.from_mapping(stored(tiny_config(**QWEN3)), origin="here") == tiny_config(**QWEN3)


def test_the_width_of_heads_follows_from_the_hidden_size_unless_given():
    assert tiny_config().head_dim == 8 and tiny_config(hidden_size=64).head_dim == 16
    config = tiny_config(hidden_size=30, head_dim=10)
    assert (config.head_dim, config.attention_size, config.key_value_size) == (10, 40, 20)


def test_a_refused_size_is_one_fault():
    with pytest.raises(ConfigError, match=r"here: 1 value\(s\) refused\n  hidden_size: [^\n]*$"):
        ModelConfig.from_mapping({"hidden_size": -1}, origin="here")
