"""Saving on one rank: what cannot be copied or written costs one checkpoint, not the run."""

import time
import weakref
from types import SimpleNamespace

import pytest
import torch

from tests.checkpoint.saved import STREAM
from ufork.checkpoint import saver as savers
from ufork.checkpoint.config import CheckpointConfig
from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.saver import Saver
from ufork.checkpoint.snapshot import HostSnapshot
from ufork.checkpoint.state import RunMetadata, TrainState, verify
from ufork.errors import StorageError
from ufork.parallel.config import StageShape
from ufork.parallel.engine.state_files import WEIGHT, RankState
from ufork.parallel.layout import MeshCoordinate, Stage

COORDINATE = MeshCoordinate(rank=0, stage=Stage.COLOCATED, shape=StageShape(), dp_rank=0, tp_rank=0)
BRIDGE = SimpleNamespace(
    size=1,
    is_leader=True,
    gather=lambda value: [value],
    sum=lambda *values, waits_for="": list(values),
    wait_for_device=lambda waits_for: None,
)
STREAM_OF_DATA = SimpleNamespace(state=lambda: STREAM)
STATE = RankState(
    dp=1,
    dp_rank=0,
    tp=1,
    tp_rank=0,
    shapes={"w": (9,)},
    partition_dims={},
    optimizer_steps=1,
    tensors={WEIGHT: {"w": torch.ones(9)}},
)


class Shards:
    """Shards whose first reads fail."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def read(self):
        if self.errors:
            raise self.errors.pop(0)
        return STATE


@pytest.fixture
def make_saver(tmp_path):
    def make(shards, **config):
        folder = CheckpointFolder(tmp_path / "checkpoints")
        folder.take()
        return Saver(
            shards,
            BRIDGE,
            COORDINATE,
            folder,
            CheckpointConfig(**config),
            run_metadata=RunMetadata(fixed={}, layout="", versions={}),
            start=TrainState(),
            timeout_seconds=60,
        )

    return make


def save(saver, step):
    saver.save(TrainState(step=step), STREAM_OF_DATA)
    saver.before_update()
    saver.finish()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error"), OSError(12, "no memory")]
)
def test_a_copy_that_fails_costs_one_checkpoint(make_saver, caplog, error):
    saver = make_saver(Shards(error))
    save(saver, 1)
    assert "after step 1 could not be written" in caplog.text and "the weights cannot be copied" in caplog.text
    save(saver, 2)
    saver.close()
    assert saver.folder.steps() == [2]
    verify(saver.folder.at(2), deep=True)


def test_a_closed_saver_holds_no_copy(make_saver):
    saver = make_saver(Shards())
    save(saver, 1)
    memory = weakref.ref(saver._image.memory)
    saver.close()
    assert memory() is None


def test_copies_that_fail_too_often_end_the_run(make_saver):
    saver = make_saver(Shards(*[RuntimeError("CUDA error")] * 2), max_failed=1)
    save(saver, 1)
    with pytest.raises(StorageError, match="weights cannot be copied.*more than train.checkpoint.max_failed=1"):
        save(saver, 2)


class NeverCopies(HostSnapshot):
    """As a device that waits for a rank that is gone."""

    def begin(self, image):
        pass

    def complete(self):
        raise StorageError("the device did not copy the weights")


def test_a_device_that_does_not_copy_in_time_costs_one_checkpoint_and_finish_returns(make_saver, caplog, monkeypatch):
    monkeypatch.setattr(savers, "snapshot_of", lambda image, timeout_seconds: NeverCopies())
    saver = make_saver(Shards())
    save(saver, 1)
    assert saver.folder.steps() == []
    assert "dp0-tp0.safetensors: the device did not copy the weights" in caplog.text


class Slow(HostSnapshot):
    def complete(self):
        time.sleep(0.3)
        super().complete()


def test_a_rank_that_waits_for_its_own_file_names_it(make_saver, caplog, monkeypatch):
    monkeypatch.setattr(savers, "snapshot_of", lambda image, timeout_seconds: Slow())
    monkeypatch.setattr(savers, "REPORT_SECONDS", 0.1)
    saver = make_saver(Shards())
    saver.save(TrainState(step=1), STREAM_OF_DATA)
    saver.finish()
    assert "unfinished/colocated/dp0-tp0.safetensors to be written, for 0 s so far" in caplog.text
    assert saver.folder.steps() == [1]
