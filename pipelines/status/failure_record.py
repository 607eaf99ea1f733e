"""The failure file: a record, for other programs, of the error that ended an entry program.

exception -> FailureRecord -> RUN/slurm/failures/JOB.RESTART/RANK.json, without Slurm RUN/failures/RANK.json

Like torchelastic's error file (torch.distributed.elastic.multiprocessing.errors), which has the traceback and the time,
but no class, no exit code and no fields.
"""

import json
import socket
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from ufork.config import Config
from ufork.errors import ConfigError, FailureClass, FieldValue, UforkError
from ufork.files import make_folder, read_bounded, write_whole
from ufork.redaction import redacted

MAX_CHARACTERS = 32_768
"""Longer messages and tracebacks are cut in the middle."""
MAX_BYTES = 2**20
"""Largest failure file that is read."""
_TRACEBACK = "\nTraceback (most recent call last):"


class FailureRecord(Config):
    """One failure, as one process saw it."""

    failure: FailureClass
    exception: str
    """Name of its Python class."""
    message: str
    """The error's message; for an exception that is not ufork's, its class and text."""
    traceback: str = ""
    """Traceback of an exception that is not ufork's."""
    exit_code: int
    """Exit code of the process."""
    rank: int
    host: str
    time: float = Field(allow_inf_nan=False)
    """Seconds since 1970."""
    fields: dict[str, FieldValue] = {}
    """See `UforkError`."""


def record_of(error: BaseException, *, exit_code: int, rank: int) -> FailureRecord:
    """Returns the record of `error`; an error of another rank that the launcher reports is recorded under that rank."""
    fields: dict[str, Any] = {}
    if isinstance(error, UforkError):
        failure, message, fields = error.failure, str(error), dict(error.fields)
    else:
        failure = FailureClass.CODE
        message = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
    message, marker, frames = message.partition(_TRACEBACK)
    return FailureRecord(
        failure=failure,
        exception=type(error).__name__,
        message=_shortened(message),
        traceback=_shortened((marker + frames).strip()),
        exit_code=exit_code,
        rank=int(fields.pop("rank", rank)),
        host=socket.gethostname(),
        time=time.time(),
        fields=fields,
    )


def _shortened(message: str) -> str:
    readable = redacted(message).encode("utf-8", errors="backslashreplace").decode("utf-8")
    half = MAX_CHARACTERS // 2
    return readable if len(readable) <= 2 * half else f"{readable[:half]}\n[...]\n{readable[-half:]}"


def write_record(path: Path, record: FailureRecord) -> None:
    """Writes the record.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(path.parent)
    write_whole(path, record.model_dump_json(indent=1) + "\n")


def read_records(paths: Iterable[Path]) -> tuple[list[FailureRecord], list[str]]:
    """Returns the records in `paths`, and a line for each file that is damaged."""
    records, faults = [], []
    for path in paths:
        try:
            content = json.loads(read_bounded(path, MAX_BYTES))
            records.append(FailureRecord.from_mapping(content, origin=str(path)))
        except OSError as error:
            faults.append(f"{path}: cannot be read ({error.strerror})")
        except (ValueError, RecursionError, ConfigError):
            faults.append(f"{path}: is not a failure file")
    return records, faults
