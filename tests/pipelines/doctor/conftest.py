"""Machines to examine: programs and packages of a test, and nothing else on the PATH."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.doctor.surroundings import Surroundings


@dataclass
class Machine:
    """A stand-in for a machine."""

    folder: Path

    def program(self, name: str, script: str) -> None:
        """Puts a shell script on its PATH."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def package(self, name: str, text: str) -> None:
        """Lets Python import it."""
        path = self.folder / "packages" / name.replace(".", "/") / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def around(self, **changes: object) -> Surroundings:
        """Returns where checks look."""
        environment = {"PATH": str(self.folder / "bin"), "PYTHONPATH": str(self.folder / "packages")}
        return replace(Surroundings(environment=environment, folder=self.folder, home=self.folder), **changes)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "packages").mkdir()
    os.symlink("/bin/sleep", tmp_path / "bin" / "sleep")
    os.symlink(sys.executable, tmp_path / "bin" / "python")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return Machine(tmp_path)
