"""Errors that a user, the machine or another rank can cause. Mistakes in the code stay assertions.

Every message names the file, key or value at fault, what was expected, and what to do: it is written for people, and no
program reads it. Programs read the class of the failure (`UforkError.failure`) and its `fields`. Entry programs print
the message without a traceback, exit with `exit_code`, and leave both as JSON (`pipelines/status/failure_record.py`).
"""

import errno
import os
from enum import StrEnum

FieldValue = str | int | float | bool | None


class FailureClass(StrEnum):
    """Kind of thing that has failed and has to be fixed."""

    CONFIGURATION = "configuration"
    DATA = "data"
    CHECKPOINT = "checkpoint"
    STORAGE = "storage"
    OUT_OF_MEMORY = "out of memory"
    TIME_OUT = "time-out"
    NON_FINITE = "non-finite"
    NODE = "node"
    PEER = "peer"
    """Another rank failed first: a consequence, whose cause is elsewhere."""
    CLUSTER = "cluster"
    STOPPED = "stopped"
    CODE = "code"
    OTHER = "other"


class UforkError(Exception):
    """Base of all errors that a user can act on.

    Args:
        message: for people.
        fields: details for programs. Known ones are `rank`; `process_exit_code`, the exit code of a process that died,
            negative for a signal; `timed_out`, whether something took too long; `cause`, the words of another library;
            `device`, the GPU at fault.
    """

    exit_code = 1
    failure = FailureClass.OTHER

    def __init__(self, message: str = "", **fields: FieldValue) -> None:
        super().__init__(message)
        self.fields = fields


class ConfigError(UforkError):
    """A recipe, an override or a command-line value is unknown, of the wrong type or out of range."""

    exit_code = 2
    failure = FailureClass.CONFIGURATION


class ShardError(UforkError):
    """A shard, its index or its manifest is missing, truncated or does not match its manifest."""

    failure = FailureClass.DATA


class SampleError(UforkError):
    """A sample cannot be used (undecodable image, empty text, longer than the token budget), or too many cannot.

    Attributes:
        reason: what is wrong and what to do, in words that are the same for all such samples: they are counted by it.
        detail: what was found in this sample.
        sample: its id, or shard and key; empty where only its contents are known.
    """

    failure = FailureClass.DATA

    def __init__(self, reason: str, *, detail: str = "", sample: str = "", **fields: FieldValue) -> None:
        super().__init__(reason, **fields)
        self.reason, self.detail, self.sample = reason, detail, sample

    def __str__(self) -> str:
        return (f"{self.sample}: " if self.sample else "") + self.reason + (f" ({self.detail})" if self.detail else "")


class LoaderError(UforkError):
    """A loader process died or hung."""

    failure = FailureClass.DATA


class WorkerError(UforkError):
    """A worker process that makes shards died."""

    failure = FailureClass.DATA


class InputError(UforkError):
    """A collection to make shards from is missing, unreadable or not in the named format."""

    failure = FailureClass.DATA


class TokenizerError(UforkError):
    """A text or image tokenizer folder is missing, incomplete or does not fit the model."""

    failure = FailureClass.DATA


class CheckpointError(UforkError):
    """Weights or their config are missing, damaged, or of another shape than the model."""

    failure = FailureClass.CHECKPOINT


class StorageError(UforkError):
    """A folder cannot be written, or the disk is full."""

    failure = FailureClass.STORAGE


class MachineError(UforkError):
    """This machine lacks something that ufork requires, or a device of it has failed."""

    failure = FailureClass.NODE


BROKEN_DEVICE = (
    r"CUDA error: (uncorrectable|hardware|unspecified launch failure|unknown error|Invalid access of peer GPU memory"
    r"|CUDA-capable device\(s\) is/are busy|CUDA driver version is insufficient|system has unsupported display driver"
    r"|system not yet initialized)"
)
"""Pattern of CUDA's errors (cudaGetErrorString) that are due to a device or its driver, and not to a program."""


class DeviceMemoryError(UforkError):
    """A GPU has too little memory for what is computed on it."""

    failure = FailureClass.OUT_OF_MEMORY


class MemoryLimitError(UforkError):
    """The machine has too little memory for what is computed on it, or its limits allow no more."""

    failure = FailureClass.OUT_OF_MEMORY


class NonFiniteError(UforkError):
    """Loss or gradients were NaN or infinite in more steps than the recipe tolerates."""

    failure = FailureClass.NON_FINITE


class PeerError(UforkError):
    """Another rank died, hung or raised."""

    failure = FailureClass.PEER


class ClusterError(UforkError):
    """Slurm is not installed here, or refused a request."""

    failure = FailureClass.CLUSTER


class QueueFullError(UforkError):
    """An engine has as many requests waiting as it may."""


class CancelledError(UforkError):
    """A request was cancelled, or its engine was closed."""

    failure = FailureClass.STOPPED


class StoppedError(UforkError):
    """A signal asked the job to stop; its state is saved, and the same command resumes it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
    failure = FailureClass.STOPPED


_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or ask for a larger quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "permit it, or choose another path",
    errno.EPERM: "permit it, or choose another path",
    errno.EROFS: "choose a path that can be written",
    errno.ENOENT: "restore it, or choose another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "end other programs, which have too many files open",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v, --mem)",
    errno.EAGAIN: "raise the limits of threads and memory (ulimit -u, -v), or lower num_workers or OMP_NUM_THREADS",
}
OUTAGES = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
"""Errors of reading one file that the others would meet, too: nothing is skipped or replaced because of them."""
_ANOTHER_TIME = "run the same command again once the disk, server or network works"
_NO_FILE = ("unable to open file <", "unable to mmap ")
"""Words of torch, which raises RuntimeError for files, memory and threads alike; so do the next ones."""
_NO_THREAD = "can't start new thread"
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "bad allocation", "bad_alloc")
_LINK_LOOP = "Symlink loop from "
"""Words of pathlib's `resolve`, which raises RuntimeError, too."""


def system_error(error: BaseException) -> UforkError | None:
    """Returns what the operating system refused as an error for users; None if `error` is no such refusal.

    Files fail at any call: a disk breaks, a quota is reached, a server or a folder disappears. Errors that the code
    does not expect where it calls are therefore translated where they would become a traceback.
    """
    of_library = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, MemoryError) or any(words in of_library for words in _NO_MEMORY):
        return MemoryLimitError(f"too little memory ({first_line(error)}); {_REMEDIES[errno.ENOMEM]}")
    if _NO_THREAD in of_library:
        return MachineError(f"{error}; {_REMEDIES[errno.EAGAIN]}")
    if of_library.startswith(_LINK_LOOP):
        return StorageError(f"{of_library}: a link that leads to itself; choose another path")
    if any(words in of_library for words in _NO_FILE):
        return StorageError(f"{first_line(error)}; {_ANOTHER_TIME}")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if not where and error.strerror == os.strerror(errno.ENOENT):  # of os.getcwd, which torch calls when it is imported
        where = "the current folder: "
    return StorageError(f"{where}{error.strerror or error}; {_REMEDIES.get(error.errno, _ANOTHER_TIME)}")


def first_line(error: BaseException | str) -> str:
    """Returns the first line of another library's error or message; of an error without words, its type."""
    without_words = "no message" if isinstance(error, str) else type(error).__name__
    return next(iter(str(error).splitlines()), without_words)
