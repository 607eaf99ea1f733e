"""Groups of a rank that leaves with an error are aborted, all at once and within a time limit."""

import threading

from ufork.parallel.transport import abort_groups as module
from ufork.parallel.transport.abort_groups import abort_groups


class Group:
    """A group whose abort waits for that of `other`, as if its kernels were queued behind those of `other`."""

    def __init__(self, *, other=None, raises=False):
        self.other, self.raises, self.aborted = other, raises, threading.Event()

    def abort(self):
        if self.other:
            self.other.aborted.wait()
        self.aborted.set()
        if self.raises:
            raise RuntimeError("NCCL error")


def test_an_abort_that_waits_for_another_groups_does_not_hold_it_up():
    last = Group()
    middle = Group(other=last, raises=True)
    assert abort_groups([Group(other=middle), middle, last])
    assert middle.aborted.is_set()


def test_an_abort_that_does_not_end_is_left_behind(monkeypatch):
    monkeypatch.setattr(module, "ABORT_SECONDS", 0.1)
    assert not abort_groups([Group(other=Group())])


def test_a_rank_without_groups_leaves_at_once():
    assert abort_groups([])
