"""The host's wait for a device: a time-out, and the name of what did not finish."""

import time
import weakref
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from ufork.errors import PeerError
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import make_layout
from ufork.parallel.transport.data_plane import data_plane_of
from ufork.parallel.transport.device_progress import DeviceProgress
from ufork.vocabulary import Task

WHO = make_layout(LayoutConfig(), num_ranks=1, global_batch_size={Task.GENERATION: 1}).coordinates[0]
TIMEOUT_SECONDS = 0.2


class Device:
    """Passes each event `seconds` after the one before; None: never."""

    def __init__(self):
        self.events, self.seconds, self.passed_at = 0, 0.0, time.monotonic()
        self.group = SimpleNamespace(name=lambda: "nccl", get_error=lambda: SimpleNamespace(name=self.error))
        self.error = "SUCCESS"

    def record_event(self):
        if self.seconds is None:
            return SimpleNamespace(query=lambda: False)
        self.passed_at += self.seconds
        return SimpleNamespace(query=lambda at=self.passed_at: time.monotonic() > at)


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def progress(device):
    return DeviceProgress(device.record_event, lambda: [device.group], WHO, timedelta(seconds=TIMEOUT_SECONDS))


def transfer(*, done: bool):
    return SimpleNamespace(is_completed=lambda: done)


def test_a_device_that_stands_still_is_an_error_that_names_the_oldest_unfinished_transfer(device, progress):
    progress.add(transfer(done=True), "hidden states from rank 1")
    progress.mark("forward of generation micro-batch 0")
    device.seconds = None
    progress.add(transfer(done=False), "hidden states from rank 2")
    progress.add(transfer(done=False), "hidden states from rank 3")
    progress.mark("forward of generation micro-batch 1")
    began = time.monotonic()
    with pytest.raises(PeerError) as raised:
        progress.wait("the losses")
    assert time.monotonic() - began > TIMEOUT_SECONDS
    message = str(raised.value)
    assert message.startswith(f"{WHO} waited for hidden states from rank 2; a rank died, hung or raised")
    assert f"no answer for 0.2 s; during {WHO}: forward of generation micro-batch 1" in message


def test_without_transfers_the_error_names_what_the_host_wants_to_read(device, progress):
    device.seconds = None
    with pytest.raises(PeerError, match="waited for the losses; a rank died"):
        progress.wait("the losses")


def test_slow_progress_is_no_error_however_long_the_step_takes(device, progress):
    device.seconds = 0.75 * TIMEOUT_SECONDS
    for number in range(4):
        progress.mark(f"forward {number}")
    began = time.monotonic()
    progress.wait("the losses")
    assert time.monotonic() - began > 2 * TIMEOUT_SECONDS


def test_an_error_that_a_group_has_seen_ends_the_wait_at_once(device):
    device.seconds, device.error = None, "COMM_ERROR"
    patient = DeviceProgress(device.record_event, lambda: [device.group], WHO, timedelta(hours=1))
    with pytest.raises(PeerError, match="comm_error of a nccl group"):
        patient.wait("the losses")


def test_an_error_that_a_group_has_seen_is_noticed_between_two_passes(device, progress):
    device.error = "REMOTE_ERROR"
    with pytest.raises(PeerError, match="remote_error of a nccl group; during .*: forward of generation micro-batch 3"):
        progress.mark("forward of generation micro-batch 3")


def test_transfers_that_are_done_are_let_go_with_their_tensors(progress):
    work = transfer(done=True)
    work.tensor = torch.zeros(1)
    let_go = weakref.ref(work.tensor)
    progress.add(work, "hidden states from rank 1")
    del work
    progress.wait("the losses")
    assert let_go() is None


def test_a_failure_of_the_device_itself_is_no_lost_peer(progress, device):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    progress._record_event = lambda: SimpleNamespace(query=broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        progress.wait("the losses")


@pytest.mark.gpu
def test_a_cuda_device_that_is_busy_too_long_is_an_error_and_one_that_is_done_is_none():
    plane = data_plane_of(torch.device("cuda"))
    progress = DeviceProgress(plane.record_event, lambda: [], WHO, timedelta(seconds=TIMEOUT_SECONDS))
    torch.cuda._sleep(4_000_000_000)  # cycles: about 2 s
    with pytest.raises(PeerError, match="waited for the losses"):
        progress.wait("the losses")
    torch.cuda.synchronize()
    progress.wait("the losses")
