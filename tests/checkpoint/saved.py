"""Checkpoints of two small files, for tests of their folder and their state."""

import json

from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.state import STATE_FILE, CheckpointState, RunMetadata, TrainState, record_of
from ufork.data.stream_state import StreamState
from ufork.files import Checksum

FILES = {"trunk/dp0-tp0.safetensors": b"weights of the trunk", "generation/dp0-tp0.safetensors": b"of the branch"}
FIXED = {"train.optimizer": "adamw", "model": {"hidden_size": 32}}
STREAM = StreamState(seed=0, num_lanes=1, step=0, first_sequence={}, sources={}, taken={})


def write_checkpoint(folder: CheckpointFolder, step: int, losses=None):
    unfinished = folder.unfinished(step)
    for name, content in FILES.items():
        (unfinished / name).parent.mkdir(parents=True)
        (unfinished / name).write_bytes(content + str(step).encode())
    return folder.finish(
        CheckpointState(
            losses=losses or {},
            train_state=TrainState(step=step),
            run_metadata=RunMetadata(fixed=FIXED, layout="colocated, tp 1", versions={}),
            stream=STREAM,
            files={name: record_of(unfinished / name) for name in FILES},
        )
    )


def content_of(path):
    return json.loads((path / STATE_FILE).read_text())


def sign(path, content):
    """Writes `content` as the state of the checkpoint at `path`, with the checksum that fits it."""
    content.pop("checksum", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = Checksum(canonical.encode()).hexdigest()
    (path / STATE_FILE).write_text(json.dumps(content))


def truncate(path):
    shards = path / "trunk/dp0-tp0.safetensors"
    shards.write_bytes(shards.read_bytes()[:-1])
