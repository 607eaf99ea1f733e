"""The input of every check of the doctor: where to look, and how to ask other programs and packages."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.commands import ask, has_program


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Folders, files and variables that the checks read."""

    environment: Mapping[str, str]
    """PATH is searched for programs, and programs run with it."""
    folder: Path
    """Folder of all runs; it need not exist."""
    home: Path
    """Home folder of the user."""
    has_gpu: bool = False
    """Whether the machine has an NVIDIA device that the environment does not hide."""
    timeout_seconds: float = 180.0
    """Time limit of one program or import. On a busy machine an import alone can take more than half a minute."""

    def has_program(self, name: str) -> bool:
        """Whether `name` is on the PATH."""
        return has_program(name, self.environment)

    def ask(self, *command: str) -> str:
        """Runs a program and returns what it prints.

        Raises:
            NoAnswer: the program is missing, failed or timed out.
        """
        return ask(command, environment=self.environment, timeout_seconds=self.timeout_seconds)

    def ask_python(self, probe: str) -> dict[str, Any]:
        """Returns what a probe of `probes.py` finds in a separate process: compiled packages may crash or hang.

        Raises:
            NoAnswer: the probe failed or timed out.
        """
        printed = self.ask(sys.executable, "-m", "pipelines.doctor.probes", probe)
        return json.loads(printed.splitlines()[-1])
