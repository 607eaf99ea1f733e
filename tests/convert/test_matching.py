"""Differences of tensors are named in groups, with the reason."""

import pytest
import torch

from ufork.convert.matching import MOST_GROUPS, require_match
from ufork.convert.tensor_folder import TensorSize
from ufork.errors import CheckpointError

EXPECTED = {f"layers.{layer}.{name}": (4, 2) for layer in range(12) for name in ("up", "down")} | {"norm": (4,)}


def sizes(shapes):
    return {name: TensorSize(shape, torch.float32) for name, shape in shapes.items()}


def differences(found, **options):
    with pytest.raises(CheckpointError) as caught:
        require_match(sizes(found), EXPECTED, origin="DIR", model="a model", **options)
    return str(caught.value).splitlines()


def test_equal_tensors_match():
    require_match(sizes(EXPECTED), EXPECTED, origin="DIR", model="a model")


def test_layers_are_one_group():
    found = {name: shape for name, shape in EXPECTED.items() if not name.endswith(".up")}
    first, *groups = differences({**found, "norm": (5,), "extra.0.bias": (1,), "extra.1.bias": (1,)})
    assert first == "DIR: 15 tensor(s) are not those of a model"
    assert [group.strip().partition(": ")[2].partition(": ")[0] for group in groups] == [
        "layers.*.up (12 tensors)",
        "extra.*.bias (2 tensors)",
        "norm",
    ]
    assert "norm: [5], expected [4]" in groups[2]


def test_shapes_are_groups_of_their_own():
    found = EXPECTED | {"layers.0.up": (4, 3), "layers.1.up": (4, 3), "layers.2.up": (9, 9)}
    assert [line.split(": ", 1)[1] for line in differences(found)[1:]] == [
        "layers.*.up: [4, 3], expected [4, 2] (2 tensors): the sizes in config.json are others",
        "layers.*.up: [9, 9], expected [4, 2]: the sizes in config.json are others",
    ]


def test_integers_are_no_weights():
    """Row M13."""
    found = sizes(EXPECTED) | {"layers.0.up": TensorSize((4, 2), torch.int8)}
    with pytest.raises(CheckpointError, match=r"mistyped: layers\.\*\.up: int8: weights are bfloat16"):
        require_match(found, EXPECTED, origin="DIR", model="a model")


def test_a_reason_belongs_to_a_pattern():
    groups = differences({**EXPECTED, "experts.1.w": (1,), "head": (1,)}, reasons={r"experts\..*": "it is a mixture"})
    assert groups[1:] == [
        "  unexpected: experts.*.w: it is a mixture",
        "  unexpected: head: the model has no such tensor",
    ]


def test_unused_tensors_may_be_there():
    require_match(sizes({**EXPECTED, "a.freq": (1,)}), EXPECTED, origin="DIR", model="a model", unused=[r".*\.freq"])


def test_a_message_names_so_many_groups():
    groups = differences({**EXPECTED, **{f"extra{number}": (1,) for number in range(MOST_GROUPS + 3)}})
    assert len(groups) == MOST_GROUPS + 2 and groups[-1].endswith("and 3 more groups")
