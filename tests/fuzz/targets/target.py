"""What a kind of input is: how valid files are written, which of them are mutated, and how they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import Mutation


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input."""

    write: Callable[[Path], None]
    """Writes valid files into an empty folder."""
    files: Mapping[str, Mutation | None]
    """Files that are mutated, each with the mutation that knows its format."""
    read: Callable[[Path], object]
    """Reads the files as ufork does; raises a UforkError or returns a result."""
    fault: Callable[[Any, Any], str] = lambda valid, found: ""
    """What is wrong with a result, given that of the valid files; empty for a result that may be."""


def differs(valid: object, found: object) -> str:
    """Refuses every other result."""
    return "" if found == valid else "another result, without an error"
