"""Seconds of a pass by what takes them, on a GPU."""

import math
from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.meta_trace import meta_model, meta_passes, meta_sequence
from tests.planning.test_memory_on_meta import workload_of_size
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.engine.muon import newton_schulz_flops
from ufork.parallel.layout import Stage, make_layout
from ufork.parallel.schedule.actions import Pass
from ufork.planning.fused_kernels import FUSED
from ufork.planning.machine import PROFILES
from ufork.planning.step_time import PassTerms, estimate_step, pass_terms, step_terms
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

H100 = PROFILES["h100"]
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")


def terms_of(workload: Workload, task: Task, direction: Pass, machine=H100) -> PassTerms:
    return pass_terms(workload, machine, Stage.COLOCATED, StageShape(), task, direction)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("task", Task)
def test_products_are_those_that_the_model_runs(task, recompute):
    """Also those that a backward pass runs again: the logits', and the decoder layers'."""
    workload = workload_of_size("short", task, recompute=recompute, fused=FUSED)
    model, sequence = meta_model(workload), meta_sequence(workload, task)
    with meta_passes(workload.sequence(task).num_targets), FlopCounterMode(display=False) as counter:
        model(sequence).backward()
    counts = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    seconds = sum(terms_of(workload, task, direction).products for direction in Pass)
    ran = sum(counts.get(name, 0) for name in PRODUCTS)
    assert seconds * H100.flops_per_s("bf16") == pytest.approx(ran, rel=0.01)


def test_the_host_bounds_a_pass_of_small_kernels():
    workload = workload_of_size("small codebook", Task.UNDERSTANDING, recompute=False, fused=FUSED)
    short = terms_of(replace(workload, seq_len=16), Task.UNDERSTANDING, Pass.FORWARD)
    assert short.seconds == short.launches > short.device
    long = terms_of(replace(workload, seq_len=65536), Task.UNDERSTANDING, Pass.FORWARD)
    assert long.seconds == long.device > long.launches


def test_fused_kernels_move_fewer_bytes():
    fused = workload_of_size("released", Task.GENERATION, recompute=False, fused=FUSED)
    unfused = replace(fused, fused=replace(FUSED, norms=False))
    assert (
        terms_of(fused, Task.GENERATION, Pass.BACKWARD).element_wise
        < terms_of(unfused, Task.GENERATION, Pass.BACKWARD).element_wise
    )


def test_terms_of_a_step_add_up_to_it():
    workload = workload_of_size("released", Task.GENERATION, recompute=True, fused=FUSED)
    workload = replace(workload, segment_tokens=576, global_batch_size={Task.GENERATION: 4})
    layout = make_layout(LayoutConfig(), num_ranks=2, global_batch_size=workload.global_batch_size)
    step = estimate_step(workload, H100, LayoutConfig(), layout)
    assert sum(step_terms(workload, H100, layout, Stage.COLOCATED).values()) == pytest.approx(step.seconds, rel=1e-6)


def test_ranks_share_the_products_of_muon():
    """Exchanged matrices take time beside them, which a node without limits of bandwidth does not need."""
    machine = H100.model_copy(update={"node_gb_per_s": 1e9, "collective_gb_per_s": None})
    workload = workload_of_size("short", Task.GENERATION, recompute=False, fused=FUSED)
    muon = replace(workload, optimizer="muon")
    assert muon.num_moments(Stage.COLOCATED) < workload.num_moments(Stage.COLOCATED)
    matrices = muon.muon_matrices(Stage.COLOCATED)
    products = sum(map(newton_schulz_flops, matrices)) / machine.flops_per_s(muon.precision)
    fewer = sum(math.prod(matrix) for matrix in matrices) * 2 * 4 / machine.element_bytes_per_s  # read and written
    for ranks in (1, 4):
        layout = make_layout(LayoutConfig(), num_ranks=ranks, global_batch_size={Task.GENERATION: 4})
        seconds = [step_terms(each, machine, layout, Stage.COLOCATED)["update"] for each in (workload, muon)]
        assert seconds[1] - seconds[0] == pytest.approx((products - fewer) / ranks, rel=0.01)
