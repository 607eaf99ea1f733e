"""DeepSpeed's configuration: keys that ufork sets, keys of `train.deepspeed`, and values that DeepSpeed refuses."""

import re

import pytest
import torch

from tests.ranks import run_on_ranks
from tests.stages import open_stage
from tests.tiny import shallow_config
from ufork.errors import ConfigError, PeerError
from ufork.parallel.config import REDUCE_BUCKET_NUMBERS
from ufork.parallel.engine.deepspeed_config import OWNED_KEYS, engine_config, naming_keys
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import join_world
from ufork.train.config import GlobalBatchSize, TrainConfig


def test_keys_of_train_deepspeed_are_merged():
    extra = {"comms_logger": {"enabled": True}, "zero_optimization": {"stage3_max_live_parameters": 7}}
    config = engine_config("bf16", max_grad_norm=2.0, num_reduced=8, extra=extra)
    assert config["comms_logger"] == {"enabled": True}
    assert config["zero_optimization"]["stage3_max_live_parameters"] == 7
    assert config["zero_optimization"]["stage"] == 3
    assert (config["bf16"], config["gradient_clipping"]) == ({"enabled": True}, 2.0)
    assert engine_config("fp32", max_grad_norm=0.0, num_reduced=8, extra={})["bf16"] == {"enabled": False}


@pytest.mark.parametrize("key", sorted(OWNED_KEYS))
def test_a_key_that_follows_from_the_recipe_is_refused_by_name(key):
    section, _, inner = key.partition(".")
    extra = {section: {inner: 2} if inner else 2}
    with pytest.raises(ConfigError, match=rf"train\.deepspeed: {key} "):
        engine_config("fp32", max_grad_norm=1.0, num_reduced=8, extra=extra)


@pytest.mark.parametrize("zero", [None, 5, "x", [1]])
def test_a_section_that_is_no_mapping_is_refused(zero):
    with pytest.raises(ConfigError, match=r"train\.deepspeed\.zero_optimization: .* expected keys and values"):
        engine_config("fp32", max_grad_norm=1.0, num_reduced=8, extra={"zero_optimization": zero})


def test_every_key_that_ufork_sets_is_owned_or_can_be_overridden():
    """A key of `train.deepspeed` either overrides ufork's or is refused; none is ignored."""
    for key in (
        engine_config("fp32", max_grad_norm=1.0, num_reduced=8, extra={}).keys() - OWNED_KEYS - {"zero_optimization"}
    ):
        assert engine_config("fp32", max_grad_norm=1.0, num_reduced=8, extra={key: 123})[key] == 123


@pytest.mark.parametrize(("num_parameters", "bucket"), [(8, 8), (10**10, REDUCE_BUCKET_NUMBERS)])
def test_the_bucket_of_gradients_is_never_larger_than_the_stage(num_parameters, bucket):
    config = engine_config("fp32", max_grad_norm=1.0, num_reduced=num_parameters, extra={})
    assert config["zero_optimization"]["reduce_bucket_size"] == bucket


REFUSED = {
    "steps_per_print": "x",
    "wall_clock_breakdown": "maybe",
    "comms_logger": 5,
    "comms_logger.enabled": "x",
    "activation_checkpointing": 7,
    "flops_profiler": {"enabled": "yes"},
    "data_types": 3,
    "pipeline": 3,
    "communication_data_type": "fp7",
    "sparse_gradients": True,
    "checkpoint": {"tag_validation": "x"},
    "zero_optimization.overlap_comm": "perhaps",
    "zero_optimization.reduce_bucket_size": -1,
    "zero_optimization.unknown": 1,
    "zero_optimization.offload_optimizer.device": "gpu",
}
"""Values by key, each refused by DeepSpeed 0.19.8 with an exception of another type or wording."""


@pytest.mark.parametrize("key", REFUSED)
def test_a_value_that_deepspeed_refuses_is_an_error_that_names_its_key(key):
    value = REFUSED[key]
    for name in reversed(key.split(".")):
        value = {name: value}
    extra = {"comms_logger": {"enabled": False}, "dump_state": False, **value}
    with pytest.raises(ConfigError, match=rf"^train\.deepspeed\.{re.escape(key)}: "):
        engine_config("fp32", max_grad_norm=1.0, num_reduced=8, extra=extra)


REFUSED_BY_THE_ENGINE = {
    "gradient_predivide_factor": 3.0,
    "tensor_parallel": {"autotp_size": 2},
    "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
}


def errors_by_key(rank_env: RankEnvironment):
    torch.set_num_threads(1)
    errors = {}
    with join_world(rank_env, timeout_seconds=60) as world:
        for key, value in REFUSED_BY_THE_ENGINE.items():
            config = TrainConfig(
                global_batch_size=GlobalBatchSize(understanding=1, generation=1),
                precision="fp32",
                deepspeed={key: value},
            )
            with pytest.raises(ConfigError) as raised:
                open_stage(world, config, model=shallow_config(), seq_len=16, name=key)
            errors[key] = str(raised.value)
    return errors


def test_a_value_that_only_the_engine_refuses_is_an_error_that_names_the_keys():
    (errors,) = run_on_ranks(errors_by_key, 1)
    for key in REFUSED_BY_THE_ENGINE:
        assert errors[key].startswith(f"train.deepspeed: {key}: DeepSpeed cannot start with these values: ")


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({}, AssertionError("without keys of the user it is no fault of theirs")),
        ({"dump_state": True}, RuntimeError("[gloo] Connection closed by peer")),
        ({"dump_state": True}, torch.OutOfMemoryError("CUDA out of memory")),
        ({"dump_state": True}, PeerError("rank 3 is gone")),
    ],
)
def test_errors_that_are_not_about_values_stay_what_they_are(extra, error):
    with pytest.raises(type(error)) as raised, naming_keys(extra):
        raise error
    assert raised.value is error
