"""DeepSpeed's configuration: keys that ufork sets, and keys of `train.deepspeed`."""

import pytest

from ufork.errors import ConfigError
from ufork.parallel.config import REDUCE_BUCKET_NUMBERS
from ufork.parallel.engine.zero import OWNED_KEYS, engine_config


def test_keys_of_train_deepspeed_are_merged():
    extra = {"comms_logger": {"enabled": True}, "zero_optimization": {"stage3_max_live_parameters": 7}}
    config = engine_config("bf16", max_grad_norm=2.0, num_parameters=8, extra=extra)
    assert config["comms_logger"] == {"enabled": True}
    assert config["zero_optimization"]["stage3_max_live_parameters"] == 7
    assert config["zero_optimization"]["stage"] == 3
    assert (config["bf16"], config["gradient_clipping"]) == ({"enabled": True}, 2.0)
    assert engine_config("fp32", max_grad_norm=0.0, num_parameters=8, extra={})["bf16"] == {"enabled": False}


@pytest.mark.parametrize("key", sorted(OWNED_KEYS))
def test_a_key_that_follows_from_the_recipe_is_refused_by_name(key):
    section, _, inner = key.partition(".")
    extra = {section: {inner: 2} if inner else 2}
    with pytest.raises(ConfigError, match=rf"train\.deepspeed: {key} "):
        engine_config("fp32", max_grad_norm=1.0, num_parameters=8, extra=extra)


@pytest.mark.parametrize("zero", [None, 5, "x", [1]])
def test_a_section_that_is_no_mapping_is_refused(zero):
    with pytest.raises(ConfigError, match=r"train\.deepspeed\.zero_optimization: .* expected keys and values"):
        engine_config("fp32", max_grad_norm=1.0, num_parameters=8, extra={"zero_optimization": zero})


def test_every_key_that_ufork_sets_is_owned_or_can_be_overridden():
    """A key of `train.deepspeed` either overrides ufork's or is refused; none is ignored."""
    for key in (
        engine_config("fp32", max_grad_norm=1.0, num_parameters=8, extra={}).keys() - OWNED_KEYS - {"zero_optimization"}
    ):
        assert engine_config("fp32", max_grad_norm=1.0, num_parameters=8, extra={key: 123})[key] == 123


@pytest.mark.parametrize(("num_parameters", "bucket"), [(8, 8), (10**10, REDUCE_BUCKET_NUMBERS)])
def test_the_bucket_of_gradients_is_never_larger_than_the_stage(num_parameters, bucket):
    config = engine_config("fp32", max_grad_norm=1.0, num_parameters=num_parameters, extra={})
    assert config["zero_optimization"]["reduce_bucket_size"] == bucket
