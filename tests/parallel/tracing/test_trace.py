"""Spans of a step: recorded only when asked for, on the clock of the rank's device, and read after the step."""

import time

import pytest
import torch

from ufork.parallel.tracing.device_clock import CudaClock, clock_of
from ufork.parallel.tracing.trace import HostClock, Tracer


def test_a_tracer_records_only_the_step_that_is_asked_for():
    tracer = Tracer()
    for on in (False, True, False):
        with tracer.recording(on=on), tracer.span("step"):
            pass
        with tracer.span("forward", "generation 0"):
            pass
    assert [(span.kind, span.name) for span in tracer.spans] == [("step", "step")]


def test_spans_of_the_host_are_as_long_as_their_blocks():
    tracer, before = Tracer(), time.time()
    with tracer.recording(), tracer.span("forward"):
        time.sleep(0.05)
    (span,) = tracer.spans
    assert before <= span.start and 0.05 <= span.end - span.start and span.end <= time.time()


class StandInDevice:
    """A stream whose work takes given times, and events as torch.cuda's; `events` are those recorded so far."""

    def __init__(self):
        self.busy_until, self.events, self.is_in_step, self.num_waits = 0.0, [], False, 0

    def launch(self, seconds):
        self.busy_until += seconds

    def event(self, *, enable_timing):
        assert enable_timing
        return StandInEvent(self)


class StandInEvent:
    def __init__(self, device):
        self.device = device

    def record(self, stream):
        self.reached = self.device.busy_until

    def elapsed_time(self, later):
        assert not self.device.is_in_step, "torch raises if the device has not reached an event"
        return (later.reached - self.reached) * 1e3

    def synchronize(self):
        assert not self.device.is_in_step, "the step would wait for the device"
        self.device.num_waits += 1


@pytest.fixture
def device(monkeypatch):
    device = StandInDevice()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return device


def test_spans_of_a_device_are_when_it_ran_the_work_and_no_step_waits_for_it(device):
    tracer = Tracer(CudaClock(torch.device("cuda", 0)))
    before = time.time()
    with tracer.recording():
        device.is_in_step = True
        with tracer.span("forward", "generation 0"):
            device.launch(2.0)  # launched in no time, as all that follows
            with tracer.span("receive"):
                device.launch(0.5)
        device.launch(1.0)
        with tracer.span("backward", "generation 0"):
            device.launch(4.0)
        device.is_in_step = False
    assert device.num_waits == 1
    end = tracer.spans[-1].end
    assert before <= end <= time.time(), "the device has just reached the end of the step"
    assert [(span.kind, *(round(end - at, 3) for at in (span.start, span.end))) for span in tracer.spans] == [
        ("receive", 5.5, 5.0),
        ("forward", 7.5, 5.0),
        ("backward", 4.0, 0.0),
    ]


def test_a_step_that_fails_does_not_wait_for_the_device(device):
    tracer = Tracer(CudaClock(torch.device("cuda", 0)))
    with pytest.raises(ZeroDivisionError), tracer.recording(), tracer.span("forward"):
        raise ZeroDivisionError
    assert device.num_waits == 0 and tracer.spans == []


def test_the_device_decides_on_the_clock():
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
    assert isinstance(clock_of(torch.device("cuda", 0)), CudaClock)


@pytest.mark.gpu
def test_a_cuda_pass_is_as_long_as_the_device_takes():
    device = torch.device("cuda", torch.cuda.current_device())
    tracer, matrix = Tracer(clock_of(device)), torch.randn(8192, 8192, device=device)
    torch.cuda.synchronize()
    with tracer.recording():
        before = time.time()
        with tracer.span("forward"):
            for _ in range(50):
                matrix @ matrix
        launched = time.time()
    after = time.time()
    (span,) = tracer.spans
    assert before - 1e-3 <= span.start and span.end <= after + 1e-3
    assert span.end > launched, "the device finishes after the host has launched the work"
