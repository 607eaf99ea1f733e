"""Freed memory is reused, which the page faults of a fresh process show."""

import subprocess
import sys

import pytest

from ufork.processes.kept_memory import keep_freed_memory

FAULTS = """
import resource, torch
from ufork.processes.kept_memory import keep_freed_memory
{call}
torch.ones(128 << 20, dtype=torch.uint8)  # freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(40 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call):
    result = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True, timeout=120
    )
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_a_large_tensor_takes_the_memory_of_a_freed_one():
    assert faults("keep_freed_memory()") < 100 < faults("")
