"""Questions to other programs, each with a time-out: what hangs or crashes there is an answer like any other.

program, arguments -> its output, or `NoAnswer` with the reason
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

from pipelines.doctor.finding import Surroundings


class NoAnswer(Exception):
    """The program is absent, failed, or took too long; the text says which."""


def has_program(name: str, around: Surroundings) -> bool:
    """Whether `name` is on the PATH."""
    return shutil.which(name, path=around.environment.get("PATH", "")) is not None


def ask(command: list[str], around: Surroundings) -> str:
    """What the program prints.

    Raises:
        NoAnswer: there is none.
    """
    program = shutil.which(command[0], path=around.environment.get("PATH", ""))
    if program is None:
        raise NoAnswer(f"{command[0]} is not on the PATH")
    # A group of its own: a wrapper script that is ended would leave what it has started, with our pipe in hand.
    asked = subprocess.Popen(
        [program, *command[1:]],
        env=dict(around.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complaint = asked.communicate(timeout=around.timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(asked.pid, signal.SIGKILL)  # and not waited for: what hangs in a driver does not end
        raise NoAnswer(f"{command[0]} did not answer within {around.timeout_seconds:g} s") from None
    if asked.returncode:
        raise NoAnswer(_reason(command[0], asked.returncode, complaint or said))
    return said.strip()


def ask_python(probe: str, around: Surroundings) -> dict[str, Any]:
    """What `pipelines.doctor.probes` finds, in a process of its own: compiled packages may crash or hang on import.

    Raises:
        NoAnswer: there is none.
    """
    said = ask([sys.executable, "-m", "pipelines.doctor.probes", probe], around)
    return json.loads(said.splitlines()[-1])


def _reason(program: str, code: int, complaint: str) -> str:
    lines = [line for line in complaint.splitlines() if line.strip()]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return lines[-1].strip() if lines and code > 0 else f"{program.rpartition('/')[2]} {how}"
