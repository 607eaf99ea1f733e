"""Bytes and operations of a pass, counted from sizes, verified against the real model on the meta device."""

import pytest

from tests.planning.test_memory_on_meta import CASES, traces_of, workload_of_size
from ufork.parallel.layout import Stage
from ufork.parallel.schedule.actions import Pass
from ufork.planning.element_wise import element_wise
from ufork.vocabulary import Task

CLOSE = 0.1


@pytest.mark.parametrize(("size", "recompute", "fused"), CASES)
@pytest.mark.parametrize("task", Task)
def test_bytes_and_operations_of_a_pass(size, task, recompute, fused):
    workload = workload_of_size(size, task, recompute=recompute, fused=fused)
    for direction, trace in zip(Pass, traces_of(size, task, recompute, fused, workload.precision), strict=True):
        estimated = element_wise(workload, Stage.COLOCATED, task, direction, tp=1)
        assert estimated.num_bytes == pytest.approx(trace.moved.total(), rel=CLOSE)
        assert estimated.num_operations == pytest.approx(trace.kernels.total(), rel=CLOSE)
