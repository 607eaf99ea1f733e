"""A request to stop that reaches a rank twice is one request; a later one ends the process."""

import signal

import pytest

from pipelines.launch import stop_signals
from pipelines.launch.stop_signals import SAME_REQUEST_SECONDS, StopRequest, handled


@pytest.fixture
def ended(monkeypatch):
    """The signals that ended the process, and a clock to set."""
    ended, clock = [], [100.0]
    monkeypatch.setattr(stop_signals.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stop_signals.signal, "raise_signal", ended.append)
    return ended, clock


def test_a_signal_that_arrives_several_times_at_once_counts_once(ended):
    request = StopRequest()
    with handled(request.receive):
        assert not request()
        for _ in range(3):
            request.receive(signal.SIGUSR2, None)
    assert request() and ended[0] == []


def test_a_later_signal_ends_the_process_at_once(ended):
    signals, clock = ended
    request = StopRequest()
    with handled(request.receive):
        request.receive(signal.SIGUSR1, None)
        clock[0] += SAME_REQUEST_SECONDS + 1
        request.receive(signal.SIGTERM, None)
        assert signals == [], "another signal is a new request"
        request.receive(signal.SIGUSR1, None)
    assert signals == [signal.SIGUSR1]
