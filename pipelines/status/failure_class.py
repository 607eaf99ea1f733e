"""Why a job has ended: one class, the line that tells it, and what to do.

exit code, the ends of the ranks' logs, Slurm's word for it -> Diagnosis

Causes are looked for before consequences: when a rank dies, the others say that they have lost it, or waited too long.
"""

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ufork.errors import ConfigError, StoppedError


class Failure(StrEnum):
    """The classes."""

    OUT_OF_MEMORY = "out of memory"
    TIME_OUT = "time-out"
    NODE = "node"
    DATA = "data"
    CONFIGURATION = "configuration"
    STOPPED = "stopped"
    CODE = "code"
    OTHER = "other"


@dataclass(frozen=True)
class Diagnosis:
    """One job's end."""

    failure: Failure
    line: str
    """What tells it: of a log, or the exit code in words."""
    advice: str


@dataclass(frozen=True)
class _Sign:
    failure: Failure
    pattern: str
    advice: str

    def __call__(self, line: str) -> Diagnosis | None:
        return Diagnosis(self.failure, line.strip(), self.advice) if re.search(self.pattern, line) else None


_HOST_MEMORY = "the node's memory was used up: ask for more (--mem), or lower data.num_workers and data.prefetch_steps"
_RESUME = "run the same command again: it goes on from the last checkpoint"
_NODE = f"leave the node out (--exclude), and {_RESUME}"

_CAUSES = (
    _Sign(
        Failure.OUT_OF_MEMORY,
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        "the device's memory was used up: shorter data.seq_len, train.activation_checkpointing=true, or more ranks;"
        " `ufork plan` estimates what a layout needs",
    ),
    _Sign(
        Failure.OUT_OF_MEMORY,
        r"oom[-_ ]kill|OOM Killed|Out of memory: Killed process|can't allocate memory|Cannot allocate memory"
        r"|MemoryError|died by SIGKILL",
        _HOST_MEMORY,
    ),
    _Sign(Failure.TIME_OUT, r"DUE TO TIME LIMIT", f"the time that was asked for is over; {_RESUME}"),
    _Sign(
        Failure.NODE,
        r"NVRM: Xid|fallen off the bus|uncorrectable ECC|DUE TO NODE FAILURE|Node failure on|slurmd .*not responding"
        r"|CUDA error: (unspecified launch failure|hardware)|No CUDA GPUs are available",
        _NODE,
    ),
    _Sign(Failure.STOPPED, r"DUE TO PREEMPTION|^ufork \w+: .*stopped by a signal after step", _RESUME),
    _Sign(Failure.CONFIGURATION, r"^ufork \w+: .*value\(s\) refused", "mend the recipe or the override that is named"),
    _Sign(
        Failure.DATA,
        r"^ufork \w+: .*(prepare (the data|or copy|it|the shard)|bring the file back|or copy it again"
        r"|no sample of the mixture can be used|more than data\.max_skipped_share|loader process \d+ \(pid"
        r"|its JSON cannot be read|make the shard again|has no codes; run|not a manifest of ufork's)",
        f"mend what the line names, then {_RESUME}",
    ),
    _Sign(
        Failure.OTHER,
        r"No space left on device|Disk quota exceeded|^ufork \w+: .*(cannot be written|could not be written)",
        f"free space or permit writing there, then {_RESUME}",
    ),
    _Sign(
        Failure.OTHER,
        r"more than train\.max_nonfinite_steps",
        "look at the samples that the line names, or lower the learning rate",
    ),
    _Sign(Failure.OTHER, r"died by SIGBUS", "/dev/shm is likely full: enlarge it (--shm-size), or data.num_workers=0"),
)
_CONSEQUENCES = (
    _Sign(
        Failure.TIME_OUT,
        r"Watchdog caught collective operation timeout|Timed out (waiting|after)|wait timeout after|timed out",
        "a rank was waited for too long: its log, or the lack of one, tells why; a slow disk or network wants a longer"
        " train.timeout_seconds",
    ),
    _Sign(
        Failure.NODE,
        r"ncclRemoteError|NCCL error.*remote|remote process exit|Connection (closed|reset) by peer|Broken pipe",
        f"a rank was lost without a word: look at its node, {_NODE}",
    ),
)
_BY_STATE = {
    "OUT_OF_MEMORY": (Failure.OUT_OF_MEMORY, _HOST_MEMORY),
    "TIMEOUT": (Failure.TIME_OUT, f"the time that was asked for is over; {_RESUME}"),
    "NODE_FAIL": (Failure.NODE, _NODE),
    "BOOT_FAIL": (Failure.NODE, _NODE),
    "PREEMPTED": (Failure.STOPPED, _RESUME),
}
"""Slurm's names of how a job ended that say all."""


def diagnose(exit_code: int | None, lines: Sequence[str], *, slurm_state: str = "") -> Diagnosis | None:
    """The class of a job's end; None when it ended well.

    Args:
        exit_code: of the job, or minus the signal that ended it; None where nobody knows.
        lines: the ends of its logs, rank after rank.
        slurm_state: as `scontrol show job` has it, where there is Slurm.
    """
    if exit_code == 0:
        return None
    if exit_code == StoppedError.exit_code:
        return Diagnosis(
            Failure.STOPPED, f"exit code {exit_code}: a signal asked it to stop, and it has saved", _RESUME
        )
    if exit_code == ConfigError.exit_code:
        told = _last_word(lines) or f"exit code {exit_code}"
        return Diagnosis(Failure.CONFIGURATION, told, "mend the recipe or the option that is named")
    if slurm_state in _BY_STATE:
        failure, advice = _BY_STATE[slurm_state]
        return Diagnosis(failure, f"Slurm: {slurm_state}", advice)
    if found := next(_told(lines), None):
        return found
    if word := _last_word(lines):
        return Diagnosis(Failure.OTHER, word, "do what the line says, or read the logs from their end")
    return _by_exit_code(exit_code)


def _last_word(lines: Sequence[str]) -> str | None:
    """The last error that ufork printed."""
    return next((line.strip() for line in reversed(lines) if re.match(r"ufork \w+: ", line)), None)


def _told(lines: Sequence[str]) -> Iterator[Diagnosis]:
    """What the lines tell, the likeliest cause first."""
    for sign in _CAUSES:
        yield from filter(None, map(sign, lines))
    for line in _raised(lines):
        if not any(sign(line) for sign in _CONSEQUENCES):
            yield Diagnosis(Failure.CODE, line, "a mistake in the code: report it with this log")
    for sign in _CONSEQUENCES:
        yield from filter(None, map(sign, lines))


def _raised(lines: Sequence[str]) -> Iterator[str]:
    """Last lines of tracebacks."""
    inside = False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line.strip() and not line[0].isspace():
            yield line.strip()
            inside = False


def _by_exit_code(exit_code: int | None) -> Diagnosis:
    """What is left where no line tells."""
    number = -exit_code if exit_code and exit_code < 0 else (exit_code or 0) - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        told = "no exit code, and no line that tells" if exit_code is None else f"exit code {exit_code}, without a word"
        return Diagnosis(Failure.OTHER, told, "read the logs from their end")
    if number == signal.SIGKILL:
        return Diagnosis(Failure.OUT_OF_MEMORY, f"exit code {exit_code}: {name}, likely by the kernel", _HOST_MEMORY)
    if number == signal.SIGTERM:
        return Diagnosis(Failure.STOPPED, f"exit code {exit_code}: {name}", _RESUME)
    return Diagnosis(Failure.OTHER, f"exit code {exit_code}: {name}", "read the logs from their end")
