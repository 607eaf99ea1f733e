"""The planner's peak of the passes on CUDA, verified against the real model on the meta device."""

import functools
import itertools

import pytest

from tests.meta_trace import Trace, trace_second_pass
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.parallel.config import StageShape
from ufork.parallel.layout import Stage
from ufork.planning.fused_kernels import FUSED, UNFUSED, FusedKernels
from ufork.planning.memory import rank_memory
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

CLOSE = 0.1
RELEASED = Dimensions(vocab_size=151_680, codebook_size=16_384, code_width=1024, codes_per_position=4)
SIZES = {
    "released": (ModelConfig(), RELEASED, 8192),
    "short": (ModelConfig(), RELEASED, 2048),
    "wide": (
        ModelConfig(
            hidden_size=1536,
            intermediate_size=8960,
            num_attention_heads=12,
            trunk_layers=14,
            understanding_layers=14,
            generation_layers=14,
            rq_head=RqHeadConfig(hidden_size=1536, num_blocks=3, dropout=0.0),
        ),
        RELEASED,
        4096,
    ),
    "Qwen3-0.6B": (
        ModelConfig(
            hidden_size=1024,
            intermediate_size=3072,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            attention_bias=False,
            use_qk_norm=True,
            trunk_layers=14,
            understanding_layers=14,
            generation_layers=14,
        ),
        RELEASED,
        4096,
    ),
    "small codebook": (
        ModelConfig(trunk_layers=4, understanding_layers=4, generation_layers=4, tie_word_embeddings=False),
        Dimensions(vocab_size=4096, codebook_size=512, code_width=64, codes_per_position=8),
        4096,
    ),
}


QUICK = [("released", False, FUSED), ("small codebook", True, UNFUSED)]
"""Cases of the fast tests."""
CASES = [
    pytest.param(
        *case,
        id=f"{case[0]}{', recomputed' * case[1]}{', unfused' * (case[2] is UNFUSED)}",
        marks=() if case in QUICK else pytest.mark.slow,
    )
    for case in itertools.product(SIZES, (False, True), (FUSED, UNFUSED))
]
"""Size, whether activations are recomputed, and kernels."""


@functools.cache
def traces_of(size: str, task: Task, recompute: bool, fused: FusedKernels, precision: str) -> tuple[Trace, Trace]:
    """Returns what a forward and a backward pass take; several tests look at the same."""
    return trace_second_pass(workload_of_size(size, task, recompute=recompute, fused=fused, precision=precision), task)


def workload_of_size(
    size: str, task: Task, *, recompute: bool, fused: FusedKernels, precision: str = "bf16"
) -> Workload:
    model, dimensions, seq_len = SIZES[size]
    return Workload(
        model=model,
        dimensions=dimensions,
        global_batch_size={task: 1},
        seq_len=seq_len,
        num_lanes=1,
        precision=precision,
        recompute=recompute,
        fused=fused,
    )


@pytest.mark.parametrize(("size", "recompute", "fused"), CASES)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("task", Task)
def test_peak_of_the_passes(size, task, precision, recompute, fused):
    workload = workload_of_size(size, task, recompute=recompute, fused=fused, precision=precision)
    planned = rank_memory(workload, Stage.COLOCATED, StageShape())
    peak = max(trace.peak for trace in traces_of(size, task, recompute, fused, precision))
    gradients = workload.num_path_parameters(Stage.COLOCATED, task) * workload.value_bytes
    assert planned.activations + planned.head == pytest.approx(peak - planned.weights - gradients, rel=CLOSE)
