"""Runs mutated inputs in a process of its own, and reports what may not happen.

    kind, numbers -> worker process: files written, then per number: one file mutated, read, restored -> Finding or none

A number decides an input completely, so that it can be repeated. The worker is forked once and reads many inputs; its
memory and the time of each input are bounded. One that dies or hangs is a finding, and another goes on after it.
"""

import gc
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.fuzz.mutations import mutated
from tests.fuzz.targets.target import Target
from ufork.errors import UforkError

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0
"""Longest time for writing and reading the valid files."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading one input may take."""

    seconds: float = 20.0
    memory_bytes: int = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An input that is not handled as it should be."""

    number: int
    problem: str
    """One line; equal problems have the same."""
    details: str = ""
    """Traceback."""


def run(
    target: Target, *, kind: str, first: int, stop: int, limits: Limits, deadline: float = float("inf")
) -> Iterator[Finding | None]:
    """Yields for each number from `first` on, below `stop` and until `deadline`, its finding or None.

    Args:
        target: what to read.
        kind: its name, a part of the seed.
        first: first number.
        stop: number after the last one.
        limits: of each input.
        deadline: time of `time.monotonic` at which no further input is begun.
    """
    with tempfile.TemporaryDirectory(prefix="ufork-fuzz-") as folder:
        while first < stop and time.monotonic() < deadline:
            worker = _Worker(target, kind, Path(folder), range(first, stop), limits)
            for finding in worker.results(deadline):
                yield finding
                first += 1


class _Worker:
    """A forked process that reads inputs one after the other."""

    def __init__(self, target: Target, kind: str, folder: Path, numbers: range, limits: Limits) -> None:
        self._numbers, self._limits = numbers, limits
        context = multiprocessing.get_context("fork")  # starts with everything imported
        self._messages, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(target, kind, folder, numbers, limits, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def results(self, deadline: float) -> Iterator[Finding | None]:
        """Yields the results until one ends the process, or the deadline comes."""
        number = self._numbers.start
        try:
            if not self._messages.poll(START_SECONDS):
                raise TimeoutError(f"valid files are not read within {START_SECONDS:g} s")
            if isinstance(message := self._messages.recv(), Exception):
                raise message
            while self._messages.poll(self._limits.seconds):
                finding = self._messages.recv()
                yield finding
                number += 1
                if finding is not None or time.monotonic() > deadline:
                    return
            yield Finding(number=number, problem=f"takes more than {self._limits.seconds:g} s")
        except EOFError:
            self._process.join()
            if number < self._numbers.stop:
                yield Finding(number=number, problem=f"ends the process ({self._process.exitcode})")
        finally:
            self._process.kill()
            self._process.join()


def _work(target: Target, kind: str, folder: Path, numbers: range, limits: Limits, messages: Connection) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    valid_folder, work_folder = folder / "valid", folder / "work"
    try:
        if not valid_folder.exists():
            valid_folder.mkdir()
            target.write(valid_folder)
        _renew(valid_folder, work_folder)
        valid = target.read(work_folder)
    except Exception as error:
        messages.send(AssertionError(f"{kind}: valid files are not read: {traceback.format_exc()}"))
        raise error
    _renew(valid_folder, work_folder)
    gc.collect()  # garbage of the parent process, which would hide what an input takes in its place
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 2 * limits.memory_bytes, resource.RLIM_INFINITY))
    messages.send("ready")
    for number in numbers:
        name, contents = input_of(target, kind, number, valid_folder)
        (work_folder / name).write_bytes(contents)
        before_bytes = _renewed_peak_bytes()
        finding = _finding(target, work_folder, valid, number)
        if finding is None and _peak_bytes() - before_bytes > limits.memory_bytes:
            finding = Finding(number=number, problem=f"takes more than {limits.memory_bytes / 2**30:g} GiB")
        messages.send(finding)
        _renew(valid_folder, work_folder)


def input_of(target: Target, kind: str, number: int, folder: Path) -> tuple[str, bytes]:
    """Returns the file that is mutated and its contents; `folder` has the valid files."""
    random = Random(f"{kind} {number}")
    name = random.choice(list(target.files))
    return name, mutated((folder / name).read_bytes(), random, target.files[name])


def _finding(target: Target, folder: Path, valid: object, number: int) -> Finding | None:
    try:
        problem = target.fault(valid, target.read(folder))
    except UforkError as error:
        problem = "" if str(error).strip() else f"{type(error).__name__} without a message"
    except BaseException as error:  # a panic of a Rust library is no Exception
        problem = f"{type(error).__name__} at {_place(error)}"
        return Finding(number=number, problem=problem, details=traceback.format_exc()[-4000:])
    return Finding(number=number, problem=problem) if problem else None


def _place(error: BaseException) -> str:
    """The last line of this project that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(f"{ROOT}/") and "/.venv/" not in frame.filename]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}"


def _renew(valid: Path, work: Path) -> None:
    """Makes `work` a copy of `valid` again: by copying only what has been changed, added or removed."""
    if not work.exists():
        shutil.copytree(valid, work)
        return
    expected = {path.relative_to(valid) for path in valid.rglob("*")}
    for path in sorted(work.rglob("*"), reverse=True):
        if path.relative_to(work) not in expected:
            with suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in sorted(expected):
        target = work / name
        if (valid / name).is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists() or target.read_bytes() != (valid / name).read_bytes():
            shutil.copyfile(valid / name, target)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _renewed_peak_bytes() -> int:
    """Sets the peak to what is resident now, which it returns: proc_pid_clear_refs(5)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def save(finding: Finding, target: Target, kind: str, to: Path) -> Path:
    """Writes the file of a finding, and beside it what happens and how to repeat it; returns its folder."""
    folder = to / f"{kind.replace(' ', '-')}-{finding.number}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ufork-fuzz-") as valid:
        target.write(Path(valid))
        name, contents = input_of(target, kind, finding.number, Path(valid))
    (folder / Path(name).name).write_bytes(contents)
    repeat = f"{sys.executable} -m tests.fuzz --kind '{kind}' --first {finding.number} --inputs 1"
    (folder / "README.txt").write_text(f"{kind}: {name}: {finding.problem}\n{repeat}\n\n{finding.details}")
    return folder
