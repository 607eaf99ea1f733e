"""The contents of `state.json`, and the check of a checkpoint's files against it.

    CheckpointState -> write_state -> FOLDER/state.json, the last file that is written
    FOLDER/state.json -> read_state: checksum, version, ranges -> verify: size and checksum of every file that it lists

Nothing else in the folder is ever read.
"""

import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, StringConstraints

from ufork.config import Config, dotted_values
from ufork.data.stream_state import StreamState
from ufork.errors import CheckpointError, ConfigError, StorageError, UforkError
from ufork.files import Checksum, checksum_of, read_object, sync, write_whole
from ufork.vocabulary import Task

CHECKPOINT_VERSION = 3
STATE_FILE = "state.json"
MAX_STATE_BYTES = 64 * 2**20
"""Largest `state.json` that is read; more than the state of 100,000 ranks needs."""
FIXED_MODEL, FIXED_DIMENSIONS, FIXED_INITIAL_WEIGHTS = "model", "tokenizers", "previous_phase_weights"
FIXED_TOKENS, FIXED_CODEBOOK = "text_tokens", "codebook"
"""Keys of `RunMetadata.fixed`: the model's config, the sizes that the tokenizers determine, and checksums of the
weights that the phase began with, the text tokenizer's tokens and the image tokenizer's codebook."""

_CONTENTS = {
    FIXED_INITIAL_WEIGHTS: "the weights that the phase starts from have changed",
    FIXED_TOKENS: "the text tokenizer has changed",
    FIXED_CODEBOOK: "the image tokenizer has changed",
}
"""What to say instead of two checksums."""
_RECORDED_LATER = {FIXED_TOKENS, FIXED_CODEBOOK}
"""Keys that checkpoints of earlier versions lack."""
_FAULTS_OF_FILES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ELOOP}
"""Errors of reading by which a file is missing or no file of a checkpoint; others are the disk's or the server's."""

_STEP_NAME = re.compile(r"step-(\d{8})")
_CHECKSUM = "checksum"

_Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_FileName = Annotated[str, StringConstraints(pattern=r"^[a-z]+/dp\d+-tp\d+\.safetensors$")]


class OtherVersionError(CheckpointError):
    """A checkpoint is whole, and cannot be read since another version of ufork wrote it."""


class FileRecord(Config):
    """Size and checksum of one file of a checkpoint."""

    bytes: NonNegativeInt
    checksum: _Checksum
    """Checksum as `ufork.files.checksum_of` computes it."""


class LossBalance(Config):
    """State of weighting losses by gradient norms (`ufork.train.objectives.gradnorm`); empty with other weightings."""

    factors: Mapping[Task, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Factor of each task's loss in the next step."""
    first_losses: Mapping[Task, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Each task's mean loss in the first step."""

    def factor(self, task: Task) -> float:
        """Returns the factor of `task`, 1 before the first step."""
        return self.factors.get(task, 1.0)


class TrainState(Config):
    """Progress of a phase."""

    step: NonNegativeInt = 0
    """Steps taken."""
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Training time, over all starts."""
    steps_skipped: NonNegativeInt = 0
    """Steps whose loss or gradients were not finite."""
    loss_balance: LossBalance = LossBalance()
    """Factors of the losses."""


class RunMetadata(Config):
    """Description of the run that wrote a checkpoint, besides its progress."""

    fixed: Mapping[str, Any]
    """Values that may not change between two starts, by their names in the recipe."""
    settings: Mapping[str, Any] = {}
    """Values that may change, likewise; empty in checkpoints that did not record them yet."""
    layout: str
    """Description of the layout, which may change."""
    versions: Mapping[str, str]
    """Versions of ufork, Python and the packages that matter."""


class CheckpointState(Config):
    """The contents of `state.json`."""

    version: int = CHECKPOINT_VERSION
    train_state: TrainState
    run_metadata: RunMetadata
    stream: StreamState
    files: Mapping[_FileName, FileRecord]
    """Files besides `state.json`, by path within the folder."""
    losses: Mapping[Task, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """Mean of each task's loss over the steps since the save before."""


def step_of(path: Path) -> int | None:
    """Number of steps in the name of a checkpoint's folder; None if it is not named like one."""
    match = _STEP_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def record_of(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    return FileRecord(bytes=path.stat().st_size, checksum=checksum_of(path))


def write_state(folder: Path, state: CheckpointState) -> None:
    """Completes the checkpoint in `folder`; all of it survives a power loss from here on.

    Raises:
        StorageError: `state.json` cannot be written.
        OSError: the disk fails.
    """
    content = state.model_dump(mode="json")
    text = json.dumps({**content, _CHECKSUM: _digest(content)}, indent=1)
    for inside in {folder / Path(name).parent for name in state.files}:
        sync(inside)
    write_whole(folder / STATE_FILE, text, durable=True)


def read_state(path: Path) -> CheckpointState:
    """Reads `state.json` of the checkpoint at `path`.

    Raises:
        OtherVersionError: the checkpoint is of another version.
        CheckpointError: the checkpoint is unfinished or damaged.
        StorageError: the disk or file server fails.
    """
    try:
        mapping = read_object(path / STATE_FILE, MAX_STATE_BYTES)
        version, checksum = mapping.get("version"), mapping.pop(_CHECKSUM, None)
        is_whole = checksum == _digest(mapping)
        if version != CHECKPOINT_VERSION:
            raise (OtherVersionError if is_whole else CheckpointError)(
                f"{path}: version {version}, expected {CHECKPOINT_VERSION}; resume with the ufork that wrote it, or"
                " start the phase over with phases.NAME.train.resume=never"
            )
        if not is_whole:
            raise CheckpointError(f"{path}: {STATE_FILE} is damaged (it does not match its own checksum)")
        state = CheckpointState.from_mapping(mapping, origin=str(path / STATE_FILE))
    except OSError as error:
        raise _unreadable(path / STATE_FILE, error) from None
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: {STATE_FILE} is damaged ({error})") from None
    if step_of(path) not in (None, state.train_state.step):
        raise CheckpointError(f"{path}: {STATE_FILE} was saved after step {state.train_state.step}; rename the folder")
    return state


def _digest(content: Mapping[str, Any]) -> str:
    """Checksum of the content of `state.json`, which does not depend on how it is laid out as text."""
    return Checksum(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(path: Path, *, deep: bool) -> CheckpointState:
    """Checks the files of the checkpoint at `path` against `state.json`: sizes, and checksums too if `deep`.

    Raises:
        CheckpointError: names the first file at fault.
        StorageError: the disk or file server fails.
    """
    state = read_state(path)
    for name, record in state.files.items():
        try:
            size = (path / name).stat().st_size
            found = record_of(path / name) if deep and size == record.bytes else None
        except OSError as error:
            raise _unreadable(path / name, error) from None
        if size != record.bytes:
            raise CheckpointError(f"{path / name}: {size} bytes, expected {record.bytes} by {STATE_FILE}")
        if found and found != record:
            raise CheckpointError(f"{path / name}: damaged, its checksum is not that of {STATE_FILE}")
    return state


def _unreadable(path: Path, error: OSError) -> UforkError:
    """Returns the error of a file that cannot be read: of the checkpoint only where the file itself is at fault.

    While a disk or file server fails, every checkpoint looks damaged; to skip them would start training over.
    """
    if error.errno in _FAULTS_OF_FILES:
        return CheckpointError(f"{path}: cannot be read ({error.strerror}); the checkpoint was not finished")
    return StorageError(
        f"{path}: cannot be read ({error.strerror}); run the same command again once the disk or file server works, or"
        " move this checkpoint away to resume from the one before it"
    )


def require_unchanged(state: CheckpointState, fixed: Mapping[str, Any], *, origin: Path) -> None:
    """Compares the values that may not change with those of this start.

    Raises:
        CheckpointError: names each value that has changed, with both values.
    """
    before = state.run_metadata.fixed
    known = {name: value for name, value in fixed.items() if name in before or name not in _RECORDED_LATER}
    changed = [
        _CONTENTS.get(name) or f"{name} was {was} in the checkpoint, is {value} in the recipe"
        for name, was, value in _changes(before, known)
    ]
    if changed:
        raise CheckpointError(
            f"{origin}: cannot resume: {'; '.join(changed)}. Restore what has changed, or start the phase over with"
            " phases.NAME.train.resume=never"
        )


def describe_changes(before: RunMetadata, now: RunMetadata) -> list[str]:
    """Returns, with both values, those that may change and have changed since `before`, as far as it records them."""
    settings = {**now.settings, "layout": now.layout, "version": now.versions}
    recorded = {**before.settings, "layout": before.layout, "version": before.versions}
    compared = {name: value for name, value in settings.items() if name in recorded}
    return [f"{name} was {was}, is {value}" for name, was, value in _changes(recorded, compared)]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns dotted name, old value and new value of each value that has changed; None stands for no value."""
    old, new = dotted_values(before), dotted_values(json.loads(json.dumps(now)))
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
