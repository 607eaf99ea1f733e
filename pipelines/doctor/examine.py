"""All checks, none of which can hang or raise.

CHECKS x Surroundings -> a thread each, so many at a time as there are -> findings in the order of CHECKS
"""

import threading
import time
from collections.abc import Mapping, Sequence

from pipelines.doctor import machine, packages, services
from pipelines.doctor.finding import Check, Finding, Mark, Surroundings

CHECKS: Mapping[str, Sequence[Check]] = {
    "machine": (
        machine.cores_and_memory,
        machine.open_files,
        machine.run_folder,
        machine.temporary,
        machine.shared_memory,
        machine.gpus,
    ),
    "training": (
        packages.python,
        packages.torch,
        packages.deepspeed,
        packages.megatron_core,
        packages.flash_attention,
        packages.apex,
        services.compilers,
    ),
    "data": (packages.simplejpeg, packages.data_preparation),
    "cluster and reports": (services.slurm, services.wandb),
}
"""By the part of the page that they stand in."""
LIMIT_SHARE = 2.5
"""Of one program's time-out, for a check as a whole: some ask several programs."""


def examine(around: Surroundings, checks: Mapping[str, Sequence[Check]]) -> dict[str, list[Finding]]:
    """What every check finds, by part; one that raises or hangs is a finding too."""
    begun = {part: [_Examination(check, around) for check in group] for part, group in checks.items()}
    deadline = time.monotonic() + LIMIT_SHARE * around.timeout_seconds
    return {part: [each.finding(deadline) for each in group] for part, group in begun.items()}


class _Examination:
    """One check in a thread that nobody waits for at the end: a disk that hangs cannot be interrupted."""

    def __init__(self, check: Check, around: Surroundings):
        self._name = check.__name__.replace("_", " ")
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._run, args=(check, around), daemon=True)
        self._thread.start()

    def _run(self, check: Check, around: Surroundings) -> None:
        try:
            self._finding = check(around)
        except Exception as error:  # whatever it is, the page tells of it
            self._finding = self._trouble(f"the check failed: {type(error).__name__}: {error}")

    def finding(self, deadline: float) -> Finding:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._finding or self._trouble("no answer in time")

    def _trouble(self, found: str) -> Finding:
        return Finding(name=self._name, mark=Mark.PROBLEM, found=found)
