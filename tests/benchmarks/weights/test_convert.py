"""Converting takes the memory of the largest tensor, and not that of the model."""

import pytest

from benchmarks.weights.convert import BOUND_TENSORS, QWEN25_7B, make_checkpoint, measure
from tests.convert.tiny_qwen import SMALL

SIZES = {"hidden_size": 560, "intermediate_size": 8192, "num_hidden_layers": 12, "vocab_size": 40_000}
ALLOCATED_MB = 30


@pytest.mark.slow
def test_peak_memory_is_a_small_multiple_of_the_largest_tensor(tmp_path):
    largest_mb = make_checkpoint(tmp_path / "qwen", {**QWEN25_7B, **SIZES}) / 1e6
    figures = measure(tmp_path / "qwen", tmp_path / "start", SMALL)
    assert figures["written_gb"] * 1000 > 10 * largest_mb
    assert figures["peak_mb"] - figures["peak_before_mb"] < BOUND_TENSORS * largest_mb + ALLOCATED_MB
