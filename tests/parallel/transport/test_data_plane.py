"""NCCL groups of the data plane: their settings."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ufork.parallel.transport import data_plane
from ufork.parallel.transport.data_plane import data_plane_of, error_of

TIMEOUT = timedelta(seconds=600)


class StandInNccl:
    """Keeps its arguments."""

    class Options:
        def __init__(self, is_high_priority_stream):
            self.is_high_priority_stream, self.config, self._timeout = is_high_priority_stream, SimpleNamespace(), None

    def __init__(self, store, rank, size, options):
        self.options = options


@pytest.fixture
def plane(monkeypatch):
    monkeypatch.setattr(dist, "ProcessGroupNCCL", StandInNccl, raising=False)
    return data_plane_of(torch.device("cuda", 0))


def test_transfers_beside_the_passes_leave_them_the_device(plane):
    beside = plane.connect(None, 0, 2, TIMEOUT, during_passes=True).options
    after = plane.connect(None, 0, 2, TIMEOUT, during_passes=False).options
    assert beside.is_high_priority_stream and beside.config.max_ctas == data_plane.PAIR_CTAS
    assert not hasattr(after.config, "max_ctas"), "nothing else runs then"


def test_the_watchdog_of_nccl_is_later_than_a_host_that_begins_to_wait_one_time_out_after_a_launch(plane):
    assert plane.connect(None, 0, 2, TIMEOUT, during_passes=True).options._timeout > 2 * TIMEOUT


def test_cpus_have_no_data_plane():
    assert data_plane_of(torch.device("cpu")) is None


def test_a_group_that_torch_has_wrapped_for_debugging_reports_no_errors():
    assert error_of(SimpleNamespace(name=lambda: "wrapped")) is None
