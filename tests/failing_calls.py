"""Makes system calls of a program fail on chosen files, or its clock jump, by a library that is loaded first.

failing_calls.c -> built once per session by the C compiler -> LD_PRELOAD and variables for `subprocess`
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")
ROOT = Path(__file__).parent.parent


class FailingCalls:
    """Runs `ufork` with calls that fail."""

    def __init__(self, library: Path) -> None:
        self.library = library

    def environment(self, **variables):
        given = {name: str(value) for name, value in variables.items()}
        return {**os.environ, "LD_PRELOAD": str(self.library), "PYTHONPATH": str(ROOT), **given}

    def run(self, *arguments, call, path, error, after=0, times=0, **variables):
        """Runs a verb; `call` names the calls that fail with `error` (errno) on files whose path contains `path`."""
        faults = {"FAIL_CALL": call, "FAIL_PATH": path, "FAIL_ERRNO": error, "FAIL_AFTER": after, "FAIL_TIMES": times}
        return ufork(*arguments, environment=self.environment(**faults, **variables))


def ufork(*arguments, environment=None, **options):
    """Runs a verb in a process of its own; its output is text."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def build(folder: Path) -> FailingCalls:
    """Builds the library; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "failing_calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", SOURCE, "-o", library, "-ldl"], check=True)
    return FailingCalls(library)
