"""Calls of the store end, whatever becomes of the store."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from ufork.parallel.transport.store_calls import in_time


def test_a_call_returns_or_raises_what_it_does_by_itself():
    store = dist.HashStore()
    store.set("key", "value")
    assert in_time(lambda: store.get("key"), 10) == b"value"
    with pytest.raises(dist.DistStoreError):
        in_time(lambda: store.wait(["another"], timedelta(seconds=0.1)), 10)


def test_a_call_that_is_never_answered_ends():
    never, began = threading.Event(), time.monotonic()
    with pytest.raises(dist.DistNetworkError, match="the job's store does not answer"):
        in_time(never.wait, 0.1)
    assert time.monotonic() - began < 5
    never.set()
