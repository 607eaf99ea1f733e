"""Refusals of layouts before any rank starts, with the key, both values and the remedy."""

import subprocess
import sys

import pytest

from tests.parallel.test_layout import forked
from tests.tiny import DIMENSIONS, tiny_config
from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import num_ranks_of
from ufork.parallel.layout_checks import checked_layout
from ufork.vocabulary import Task


def check(config: LayoutConfig, num_ranks: int | None = None, **changes):
    values = dict(
        global_batch_size=dict.fromkeys(Task, 12),
        model=tiny_config(num_key_value_heads=4),
        dimensions=DIMENSIONS,
        seq_len=64,
        num_lanes=12,
    )
    return checked_layout(config, num_ranks=num_ranks or num_ranks_of(config), **{**values, **changes})


def test_a_layout_that_fits_is_returned():
    assert check(forked(trunk=(2, 3), generation=(2, 2))).num_micro_batches("trunk") == dict.fromkeys(Task, 4)
    assert check(LayoutConfig(colocated_tp=2), 4, seq_len=63).reader == "colocated", "nothing is sent between stages"


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            forked(trunk=(2, 1)),
            {"seq_len": 63},
            r"data\.seq_len=63 is not a multiple of 2, the largest tp .* set data\.seq_len=64",
        ),
        (
            forked(trunk=(1, 3)),
            {"num_lanes": 8},
            r"data\.num_lanes=8 is not a multiple of the 3 .* trunk stage.* set data\.num_lanes=9",
        ),
        (
            forked(understanding=(2, 1)),
            {"model": tiny_config(num_key_value_heads=1)},
            r"tp=2 does not divide model\.num_key_value_heads=1; choose",
        ),
        (
            forked(generation=(4, 1)),
            {"dimensions": DIMENSIONS.model_copy(update={"codebook_size": 30})},
            r"tp=4 does not divide the codebook's size=30",
        ),
        (
            forked(),
            {"model": tiny_config(separate_first_layers=1)},
            r"layout\.kind=forked: model\.separate_first_layers=1, .* set layout\.kind=colocated",
        ),
        (forked(generation=(1, 3), in_flight=2), {}, r"layout\.in_flight=2 deadlocks; use at least 3"),
        (forked(generation=(1, 5)), {}, r"global_batch_size\.generation=12 is not a multiple of the 5"),
    ],
)
def test_an_unfit_layout_is_refused_with_the_remedy(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(config, **changes)


def test_sizes_of_a_head_count_only_in_the_stages_that_hold_it():
    odd = DIMENSIONS.model_copy(update={"codebook_size": 31})
    check(forked(trunk=(2, 1), understanding=(2, 1)), dimensions=odd)
    with pytest.raises(ConfigError, match="the codebook's size=31"):
        check(LayoutConfig(colocated_tp=2), 2, dimensions=odd)


def test_a_frozen_trunk_cannot_deadlock():
    check(forked(generation=(1, 3), in_flight=1), trunk_trains=False)


def test_checks_need_no_torch():
    code = (
        "import sys, ufork.parallel.layout_checks; assert not {'torch', 'deepspeed', 'megatron'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
