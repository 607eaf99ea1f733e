"""What ufork computes from a converted checkpoint of the release is what the release computes."""

import pytest
import torch

from benchmarks.parity import batches
from benchmarks.parity.partitioned import partitioned_values
from benchmarks.parity.values import Difference, all_values, differences, read_golden, table
from tests.golden_files import GOLDEN
from ufork.convert.unifork import convert


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(GOLDEN / "ckpt", folder)
    return folder


@pytest.fixture(scope="module")
def expected():
    return read_golden(GOLDEN)


@pytest.fixture(scope="module")
def reference(converted, expected):
    return batches.reference_values(GOLDEN / "ckpt", converted, expected)


def beyond_allowance(values, expected) -> list[Difference]:
    return [one for one in differences(values, expected) if not one.is_allowed]


def test_preparation_tokenizer_body_heads_and_losses_are_the_releases(converted, expected):
    values = all_values(converted, expected)
    assert len(values) == 28 and not beyond_allowance(values, expected)


def test_gradients_answers_and_drawings_are_those_of_an_independent_implementation(converted, expected, reference):
    values = batches.ufork_values(converted, expected)
    assert len(values) == 5 and not beyond_allowance(values, reference)


@pytest.mark.slow
def test_body_heads_losses_and_gradients_partitioned_over_ranks_are_the_releases(converted, expected, reference):
    values = partitioned_values(converted, expected, tp=2)
    assert len(values) == 13 and not beyond_allowance(values, expected | reference)


def test_differences_count_where_rows_are_no_padding():
    mask = torch.tensor([[True, False]])
    golden = {"und x": torch.zeros(1, 2, 3), "und attention_mask": mask, "gen codes": torch.tensor([1, 2, 3])}
    found = {"und x": torch.tensor([[[0.0, 0.5, 0.0], [9.0, 9.0, 9.0]]]), "gen codes": torch.tensor([1, 5, 6])}
    by_name = {one.name: one for one in differences(found, golden)}
    assert by_name["und x"].largest == 0.5 and not by_name["und x"].is_allowed
    assert by_name["gen codes"].largest == 2
    assert "| und x | 5.0e-01 | 1e-05 |" in table(list(by_name.values()))
