"""Copies that a checkpoint is written from: as the updates left the weights, on the host and on a device's streams.

`SimulatedDevice` stands for CUDA: what is launched runs later, each stream in order and streams in any order that their
events allow, as drawn by a test.
"""

import random
import threading
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ufork.checkpoint import snapshot
from ufork.checkpoint.snapshot import HostSnapshot, StreamSnapshot, snapshot_of
from ufork.errors import StorageError
from ufork.parallel.engine.state_files import WEIGHT, RankState

SIZES = {"a": 3, "b": 5, "c": 4}


class SimulatedEvent:
    def __init__(self, device):
        self.device, self.passed = device, False

    def query(self):
        self.device.run_some()
        return self.passed


class SimulatedStream:
    def __init__(self, device):
        self.device, self.launched = device, deque()

    def record_event(self):
        event = SimulatedEvent(self.device)
        self.launched.append((lambda: True, lambda: setattr(event, "passed", True)))
        return event

    def wait_event(self, event):
        self.launched.append((lambda: event.passed, lambda: None))

    def launch(self, work):
        self.launched.append((lambda: True, work))


class SimulatedDevice:
    """Two streams, and the calls of `CudaStreams`; runs some of what was launched whenever an event is asked for."""

    def __init__(self, seed=0, lock_error=""):
        self.random, self.lock_error = random.Random(seed), lock_error
        self.trained, self.copying = SimulatedStream(self), SimulatedStream(self)
        self.locked, self.entered = [], []

    def training(self):
        return self.trained

    def copy(self, targets, sources):
        for target, source in zip(targets, sources, strict=True):
            self.copying.launch(lambda target=target, source=source: target.copy_(source))

    def lock_pages(self, memory):
        if not self.lock_error:
            self.locked.append(memory)
        return self.lock_error

    def unlock_pages(self, memory):
        self.locked = [locked for locked in self.locked if locked is not memory]

    def enter_thread(self):
        self.entered.append(threading.get_ident())

    def run_some(self):
        for _ in range(self.random.randrange(4)):
            self._run_one()

    def run_all(self):
        while self._run_one():
            pass

    def _run_one(self):
        ready = [each for each in (self.trained, self.copying) if each.launched and each.launched[0][0]()]
        if ready:
            self.random.choice(ready).launched.popleft()[1]()
        return bool(ready)


@pytest.fixture(autouse=True)
def unchanged_priority(monkeypatch):
    """The tests call `complete` in their own thread, and asking often enough must not take long."""
    lowered = []
    monkeypatch.setattr(snapshot, "lower_priority", lambda: lowered.append(threading.get_ident()))
    monkeypatch.setattr(snapshot, "POLL_SECONDS", 0.0)
    return lowered


def shards():
    """Flat tensors as ZeRO's, and the rank's state of views into them."""
    flats = {kind: torch.arange(float(sum(SIZES.values()))) for kind in (WEIGHT, "exp_avg")}
    tensors = {kind: dict(zip(SIZES, flat.split(list(SIZES.values())), strict=True)) for kind, flat in flats.items()}
    shapes = {name: (size,) for name, size in SIZES.items()}
    state = RankState(
        dp=1, dp_rank=0, tp=1, tp_rank=0, shapes=shapes, partition_dims={}, optimizer_steps=1, tensors=tensors
    )
    return list(flats.values()), state


def update(flats):
    for flat in flats:
        flat.mul_(1.5).add_(1)


def images_during_training(device, saves, *, before_update):
    """Images that the writing thread saw, and the right ones, of a training that saves after the steps `saves`."""
    flats, state = shards()
    copied, image, seen, right = StreamSnapshot(device, timeout_seconds=60), None, [], []
    plain, _ = shards()
    for step in range(max(saves) + 2):
        if step - 1 in saves:
            image = state.image(image and image.memory)
            copied.begin(image)
            right.append([flat.clone() for flat in plain])
        before_update(copied)
        device.trained.launch(lambda: update(flats))  # one step later than its save
        update(plain)
        if step - 1 in saves:
            copied.complete()
            seen.append([target.clone() for target in image.targets])
    return seen, right


SAVES = st.sets(st.integers(0, 6), min_size=1)


@given(seed=st.integers(0, 10**6), saves=SAVES)
def test_a_device_copies_what_the_updates_so_far_have_left(seed, saves):
    device = SimulatedDevice(seed)
    seen, right = images_during_training(device, saves, before_update=StreamSnapshot.before_update)
    assert len(seen) == len(saves)
    for images, flats in zip(seen, right, strict=True):
        assert all(torch.equal(target, flat) for target, flat in zip(images, flats, strict=True))


def test_without_the_wait_of_the_update_some_copies_are_wrong():
    """What the test above would miss if the simulated streams always ran in a harmless order."""
    wrong = 0
    for seed in range(50):
        seen, right = images_during_training(SimulatedDevice(seed), {1, 3}, before_update=lambda _: None)
        wrong += any(
            not torch.equal(a, b) for each in zip(seen, right, strict=True) for a, b in zip(*each, strict=True)
        )
    assert wrong > 10


def test_the_host_never_waits_for_the_device_before_an_update():
    device, (flats, state) = SimulatedDevice(), shards()
    copied = StreamSnapshot(device, timeout_seconds=60)
    device.trained.launch(lambda: update(flats))
    copied.begin(state.image())
    copied.before_update()
    device.trained.launch(lambda: update(flats))
    assert len(device.trained.launched) == 4, "update, event, wait for the copies, update: none has run"
    assert len(device.copying.launched) == 4, "wait for training, one copy per flat tensor, event: none has run"


def test_a_stream_that_never_copies_is_named_after_the_time_limit():
    device, (_, state) = SimulatedDevice(), shards()
    device.trained.wait_event(SimulatedEvent(device))  # as a collective with a rank that is gone
    copied = StreamSnapshot(device, timeout_seconds=0.05)
    copied.begin(state.image())
    with pytest.raises(StorageError, match="did not copy the weights within 0 s.*a rank that is gone"):
        copied.complete()


def test_closing_ends_the_wait_of_the_writing_thread_and_leaves_memory_locked_that_may_be_written(monkeypatch):
    monkeypatch.setattr(snapshot, "POLL_SECONDS", 60.0)
    device, (_, state) = SimulatedDevice(), shards()
    device.trained.wait_event(SimulatedEvent(device))
    copied, errors = StreamSnapshot(device, timeout_seconds=600), []
    copied.begin(state.image())

    def complete():
        try:
            copied.complete()
        except StorageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=complete)
    thread.start()
    copied.close()
    thread.join(timeout=30)
    assert errors == ["training ended before the device had copied the weights"]
    assert len(device.locked) == 1


def test_memory_is_locked_once_for_a_phase_and_unlocked_at_its_end():
    device, (_, state) = SimulatedDevice(), shards()
    copied = StreamSnapshot(device, timeout_seconds=60)
    image = state.image()
    for _ in range(3):
        image = state.image(image.memory)
        copied.begin(image)
        copied.complete()
        assert [locked is image.memory for locked in device.locked] == [True]
    copied.close()
    assert device.locked == []


def test_memory_that_cannot_be_locked_is_a_warning_and_the_copies_are_right(caplog):
    device, (flats, state) = SimulatedDevice(lock_error="out of memory"), shards()
    copied = StreamSnapshot(device, timeout_seconds=60)
    image = state.image()
    for _ in range(2):
        copied.begin(image)
        copied.complete()
    assert all(torch.equal(target, flat) for target, flat in zip(image.targets, flats, strict=True))
    (warning,) = caplog.messages
    assert "cannot be page-locked (out of memory); each save holds up training" in warning


def test_priority_is_lowered_only_when_the_thread_calls_cuda_no_more(unchanged_priority):
    device, (_, state) = SimulatedDevice(), shards()
    copied = StreamSnapshot(device, timeout_seconds=60)
    image = state.image()
    copied.begin(image)
    asked_at = []
    query = copied._copied.query
    copied._copied.query = lambda: asked_at.append(len(unchanged_priority)) or query()
    copied.complete()
    assert set(asked_at) == {0} and unchanged_priority == [threading.get_ident()]
    assert device.entered == [threading.get_ident()], "a thread that does not enter uses GPU 0"


def test_a_host_snapshot_taken_while_training_goes_on_is_the_synchronous_one_bit_for_bit():
    flats, state = shards()
    plain, _ = shards()
    copied, image = HostSnapshot(), None
    for _ in range(50):
        image = state.image(image and image.memory)
        right = [flat.clone() for flat in plain]
        copied.begin(image)
        thread = threading.Thread(target=copied.complete)
        thread.start()
        copied.before_update()
        update(flats), update(plain)
        thread.join()
        assert all(torch.equal(target, flat) for target, flat in zip(image.targets, right, strict=True))


def test_a_host_snapshot_that_fails_releases_the_update_and_the_end():
    copied, (_, state) = HostSnapshot(), shards()
    image = state.image()
    image.targets.clear()
    copied.begin(image)
    with pytest.raises(RuntimeError):
        copied.complete()
    copied.before_update(), copied.close()


def test_shards_in_host_memory_are_copied_by_the_host():
    assert isinstance(snapshot_of(shards()[1].image(), timeout_seconds=1), HostSnapshot)


def test_the_image_begins_on_a_page_since_cuda_locks_whole_pages():
    assert shards()[1].image().memory.data_ptr() % 4096 == 0


@pytest.mark.gpu
def test_a_cuda_device_copies_while_it_trains_as_a_synchronous_copy_would():
    flats = [torch.arange(float(1 << 22), device="cuda") for _ in range(2)]
    views = {kind: dict(enumerate(flat.split(1 << 20))) for kind, flat in zip((WEIGHT, "exp_avg"), flats, strict=True)}
    shapes = {name: (1 << 20,) for name in views[WEIGHT]}
    state = RankState(
        dp=1, dp_rank=0, tp=1, tp_rank=0, shapes=shapes, partition_dims={}, optimizer_steps=1, tensors=views
    )
    image = state.image()
    copied = snapshot_of(image, timeout_seconds=60)
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(5):
        for _ in range(20):  # work that the copies come after
            busy = (busy @ busy).tanh()
        update(flats)
        right = [flat.clone() for flat in flats]
        image = state.image(image.memory)
        copied.begin(image)
        assert image.memory.is_pinned()
        copied.before_update()
        update(flats)
        thread = threading.Thread(target=copied.complete)
        thread.start()
        thread.join()
        assert all(torch.equal(target, flat.cpu()) for target, flat in zip(image.targets, right, strict=True))
    copied.close()
    assert not image.memory.is_pinned()
