"""Fixtures of the readers' tests."""

import subprocess
import sys

import pytest

_SCRIPT = """
import sys
from data_prep.inputs import config
reader = config.open_input(getattr(config, sys.argv[1]).model_validate_json(sys.argv[2]))
print([(record, reader.image(record)) for record in reader.records()])
"""


@pytest.fixture
def read_in_another_process():
    """Returns a function that reads a collection in a new process, given its config alone."""

    def read(config) -> str:
        command = [sys.executable, "-c", _SCRIPT, type(config).__name__, config.model_dump_json()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return read
