"""Diagnosis of an ended job: the class of the failure, the line that shows it, and what to do.

failure files of the ranks, exit code, ends of the logs, Slurm's state of the job -> Diagnosis

Failures of ufork are classified by their failure files. Patterns are for the text of others only: CUDA, NCCL, gloo, the
kernel, Slurm, Python. When one rank fails, the others report that they have lost it or waited too long, so causes are
looked for before consequences, and the earliest cause counts.
"""

import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipelines.status.failure_record import FailureRecord
from ufork.errors import BROKEN_DEVICE, ConfigError, FailureClass, StoppedError

LINE_CHARACTERS = 500
"""Longest line of a diagnosis."""


@dataclass(frozen=True)
class Diagnosis:
    """Reason for which one job has ended."""

    failure: FailureClass
    line: str
    """The evidence: an error message, a line of a log, or the exit code in words."""
    advice: str
    rank: int | None = None
    """The rank that failed, where its failure file says."""


@dataclass(frozen=True)
class _Sign:
    """Text of another program that shows a failure."""

    failure: FailureClass
    pattern: str
    advice: str

    def __call__(self, line: str) -> Diagnosis | None:
        return Diagnosis(self.failure, _cut(line), self.advice) if re.search(self.pattern, line) else None


_RESUME = "run the same command again to resume from the last checkpoint"
_HOST_MEMORY = "the node ran out of memory: request more (--mem), or lower data.num_workers and data.prefetch_steps"
_DEVICE_MEMORY = (
    "the GPU ran out of memory: set train.activation_checkpointing=true, lower data.seq_len, or change layout (more"
    " ranks hold less each); `ufork plan RECIPE --gpus N` estimates the memory of layouts"
)
_TIME_LIMIT = f"the job reached its time limit; {_RESUME}"
_NODE = f"exclude the node (--exclude), and {_RESUME}"
_LOST = f"a rank was lost without reporting an error: look at its node; {_NODE}"
_WAITED = (
    "a rank waited too long for another: look at the log of that rank; if only the disk or network is slow, raise"
    " train.timeout_seconds"
)
_SPACE = f"free space or permit writing there, then {_RESUME}"
_SHARED_MEMORY = "/dev/shm is probably full: enlarge it (docker run --shm-size=8g)"
_DEVICE = f"a GPU or its driver failed: look for Xid in the node's kernel log (dmesg); {_NODE}"
_NCCL = (
    "NCCL failed: set NCCL_DEBUG=INFO and read what it reports; NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose its network"
)
_SHARED_GPU = "two ranks took one GPU: start one rank per GPU"
_BUILD = "torch has no kernels for this GPU, or does not fit its driver: run `ufork doctor` on the node"
_ASSERTED = (
    "a kernel read or wrote outside its data: set CUDA_LAUNCH_BLOCKING=1 to see which, and report it with the log"
)
_REPORT = "this is a bug: report it with this log"
_READ_LOGS = "read the logs from their end"

_ADVICE = {
    FailureClass.CONFIGURATION: "fix the recipe or the option that the message names",
    FailureClass.DATA: f"fix what the message names, then {_RESUME}",
    FailureClass.CHECKPOINT: f"fix what the message names, then {_RESUME}",
    FailureClass.STORAGE: _SPACE,
    FailureClass.OUT_OF_MEMORY: _HOST_MEMORY,
    FailureClass.TIME_OUT: _WAITED,
    FailureClass.NON_FINITE: "look at the samples that the message names, or lower train.learning_rate",
    FailureClass.NODE: _NODE,
    FailureClass.CLUSTER: "fix what Slurm names, and submit again",
    FailureClass.STOPPED: _RESUME,
    FailureClass.CODE: _REPORT,
    FailureClass.OTHER: "do what the message says, or read the logs from their end",
}
"""Advice by class; errors about another rank are distinguished by their fields."""
_CAUSES = (
    _Sign(
        FailureClass.OUT_OF_MEMORY,
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        _DEVICE_MEMORY,
    ),
    _Sign(
        FailureClass.OUT_OF_MEMORY,
        r"oom[-_ ]kill|OOM Killed|Out [Oo]f [Mm]emory$|Out of memory: Killed process|can't allocate memory"
        r"|Cannot allocate memory|MemoryError",
        _HOST_MEMORY,
    ),
    _Sign(FailureClass.TIME_OUT, r"DUE TO TIME LIMIT", _TIME_LIMIT),
    _Sign(FailureClass.NODE, r"DUE TO NODE FAILURE|Node failure on|slurmd .*not responding", _NODE),
    _Sign(
        FailureClass.NODE,
        rf"NVRM: Xid|fallen off the bus|GPU is lost|uncorrectable (ECC|NVLink)|[Dd]river/library version mismatch"
        rf"|No CUDA GPUs are available|{BROKEN_DEVICE}",
        _DEVICE,
    ),
    _Sign(
        FailureClass.NODE,
        r"no kernel image is available|NVIDIA driver on your system is too old|not compiled with CUDA",
        _BUILD,
    ),
    _Sign(FailureClass.CONFIGURATION, r"Duplicate GPU detected|invalid device ordinal", _SHARED_GPU),
    _Sign(
        FailureClass.CODE,
        r"device-side assert triggered|an illegal memory access was encountered|misaligned address",
        _ASSERTED,
    ),
    _Sign(
        FailureClass.NODE,
        r"nccl(SystemError|InternalError|UnhandledCudaError)|unhandled (system|cuda) error",
        _NCCL,
    ),
    _Sign(FailureClass.STOPPED, r"DUE TO PREEMPTION", _RESUME),
    _Sign(FailureClass.STORAGE, r"No space left on device|Disk quota exceeded", _SPACE),
    _Sign(FailureClass.STORAGE, r"Bus error", _SHARED_MEMORY),
)
_CONSEQUENCES = (
    _Sign(
        FailureClass.TIME_OUT,
        r"Watchdog caught collective operation timeout|Timed out (waiting|after)|wait timeout after|timed out",
        _WAITED,
    ),
    _Sign(
        FailureClass.NODE,
        r"ncclRemoteError|NCCL error.*remote|remote process exit|Connection (closed|reset) by peer|Broken pipe",
        _LOST,
    ),
)
_SLURM_STATES = {
    "OUT_OF_MEMORY": (FailureClass.OUT_OF_MEMORY, _HOST_MEMORY),
    "TIMEOUT": (FailureClass.TIME_OUT, _TIME_LIMIT),
    "NODE_FAIL": (FailureClass.NODE, _NODE),
    "BOOT_FAIL": (FailureClass.NODE, _NODE),
    "PREEMPTED": (FailureClass.STOPPED, _RESUME),
}
"""Slurm's names for how a job ended that need no further evidence."""


def diagnose(
    exit_code: int | None, lines: Sequence[str], *, records: Sequence[FailureRecord] = (), slurm_state: str = ""
) -> Diagnosis | None:
    """Returns why a job has ended; None if it ended well.

    Args:
        exit_code: of the job, or minus the signal that ended it; None where it is not known.
        lines: the ends of its logs, rank after rank.
        records: the failures that its ranks recorded.
        slurm_state: as `scontrol show job` has it, where there is Slurm.
    """
    if exit_code == 0:
        return None
    if exit_code == StoppedError.exit_code:
        return Diagnosis(FailureClass.STOPPED, f"exit code {exit_code}: stopped by a signal, and saved", _RESUME)
    if slurm_state in _SLURM_STATES:
        failure, advice = _SLURM_STATES[slurm_state]
        return Diagnosis(failure, f"Slurm: {slurm_state}", advice)
    by_time = sorted(records, key=lambda record: record.time)
    return next(_evidence(by_time, lines), None) or _by_exit_code(exit_code)


def _evidence(records: Sequence[FailureRecord], lines: Sequence[str]) -> Iterator[Diagnosis]:
    """Yields what the records and the lines show, the likeliest cause first."""
    consequences = []
    for record in records:
        found, is_cause = _of_record(record)
        if is_cause:
            yield found
        else:
            consequences.append(found)
    yield from _signs_in(lines, _CAUSES)
    for line in _raised(lines):
        if not any(_signs_in([line], _CONSEQUENCES)):
            yield Diagnosis(FailureClass.CODE, _cut(line), _REPORT)
    yield from consequences
    yield from _signs_in(lines, _CONSEQUENCES)


def _of_record(record: FailureRecord) -> tuple[Diagnosis, bool]:
    """Returns what a record shows, and whether that is a cause rather than a consequence of another rank's failure."""
    found, is_cause = _classify(record)
    line = _cut(" ".join(record.message.split()))
    return Diagnosis(found.failure, line, found.advice, record.rank), is_cause


def _classify(record: FailureRecord) -> tuple[Diagnosis, bool]:
    by_class = Diagnosis(record.failure, "", _ADVICE.get(record.failure, _READ_LOGS))
    if record.failure is FailureClass.PEER:
        timed_out = bool(record.fields.get("timed_out"))
        cause = [str(record.fields.get("cause", ""))]
        by_field = (
            Diagnosis(FailureClass.TIME_OUT, "", _WAITED) if timed_out else Diagnosis(FailureClass.NODE, "", _LOST)
        )
        return next(_signs_in(cause, _CONSEQUENCES), by_field), False
    if record.failure is FailureClass.CODE:  # an exception of Python or of a library: its text is foreign
        lines = record.message.splitlines()
        if found := next(_signs_in(lines, _CAUSES), None):
            return found, True
        found = next(_signs_in(lines, _CONSEQUENCES), None)
        return (found, False) if found else (by_class, True)
    if record.failure is FailureClass.OUT_OF_MEMORY and "device" in record.fields:
        return Diagnosis(record.failure, "", _DEVICE_MEMORY), True
    process_exit_code = record.fields.get("process_exit_code")
    if process_exit_code == -signal.SIGKILL:
        return Diagnosis(FailureClass.OUT_OF_MEMORY, "", _HOST_MEMORY), True
    if process_exit_code == -signal.SIGBUS:
        return Diagnosis(FailureClass.STORAGE, "", _SHARED_MEMORY), True
    return by_class, True


def _signs_in(lines: Iterable[str], signs: Sequence[_Sign]) -> Iterator[Diagnosis]:
    for sign in signs:
        yield from filter(None, map(sign, lines))


def _raised(lines: Sequence[str]) -> Iterator[str]:
    """Yields the last lines of Python's tracebacks."""
    inside = False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line.strip() and not line[0].isspace():
            yield line.strip()
            inside = False


def _by_exit_code(exit_code: int | None) -> Diagnosis:
    """Returns what the exit code alone shows."""
    if exit_code is None:
        return Diagnosis(FailureClass.OTHER, "no exit code and no error message", _READ_LOGS)
    if exit_code == ConfigError.exit_code:
        return Diagnosis(FailureClass.CONFIGURATION, f"exit code {exit_code}", _ADVICE[FailureClass.CONFIGURATION])
    number = -exit_code if exit_code < 0 else exit_code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return Diagnosis(FailureClass.OTHER, f"exit code {exit_code}, without an error message", _READ_LOGS)
    line = f"exit code {exit_code}: {name}"
    if number == signal.SIGKILL:
        return Diagnosis(FailureClass.OUT_OF_MEMORY, f"{line}, probably by the out-of-memory killer", _HOST_MEMORY)
    if number == signal.SIGTERM:
        return Diagnosis(FailureClass.STOPPED, line, _RESUME)
    return Diagnosis(FailureClass.OTHER, line, _READ_LOGS)


def _cut(line: str) -> str:
    stripped = line.strip()
    return stripped if len(stripped) <= LINE_CHARACTERS else f"{stripped[: LINE_CHARACTERS - 3]}..."
