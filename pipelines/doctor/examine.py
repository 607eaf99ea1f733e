"""Runs all checks at the same time; none of them can hang the doctor or raise.

CHECKS x Surroundings -> one thread per check -> findings in the order of CHECKS
"""

import threading
import time
from collections.abc import Mapping, Sequence

from pipelines.doctor import gpus, machine, packages, services
from pipelines.doctor.finding import Check, Finding, Mark
from pipelines.doctor.surroundings import Surroundings

CHECKS: Mapping[str, Sequence[Check]] = {
    "machine": (
        machine.cores_and_memory,
        machine.open_files,
        machine.run_folder,
        machine.temporary,
        machine.shared_memory,
        gpus.gpus,
        gpus.gpu_links,
    ),
    "training": (
        packages.python,
        packages.torch,
        gpus.gpu_kernels,
        packages.deepspeed,
        packages.megatron_core,
        packages.flash_attention,
        packages.apex,
        services.compilers,
    ),
    "data": (packages.simplejpeg, packages.data_preparation),
    "cluster and reports": (services.slurm, services.wandb),
}
"""Checks by section of the page."""
LIMIT_FACTOR = 2.5
"""Time limit of a whole check as a multiple of one program's: some checks ask several programs."""


def examine(around: Surroundings, checks: Mapping[str, Sequence[Check]]) -> dict[str, list[Finding]]:
    """Returns the finding of every check, by section; a check that raises or times out becomes a finding too."""
    limit_seconds = LIMIT_FACTOR * around.timeout_seconds
    deadline = time.monotonic() + limit_seconds
    begun = {section: [_Examination(check, around) for check in group] for section, group in checks.items()}
    return {section: [each.finding(deadline, limit_seconds) for each in group] for section, group in begun.items()}


class _Examination:
    """One check in a daemon thread: a disk that hangs cannot be interrupted."""

    def __init__(self, check: Check, around: Surroundings):
        self._name = check.__name__.strip("_").replace("_", " ")
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._run, args=(check, around), daemon=True)
        self._thread.start()

    def _run(self, check: Check, around: Surroundings) -> None:
        try:
            self._finding = check(around)
        except Exception as error:  # the page shows every error
            found = f"the check failed: {type(error).__name__}: {error}"
            self._finding = Finding(name=self._name, mark=Mark.PROBLEM, found=found)

    def finding(self, deadline: float, limit_seconds: float) -> Finding:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        timed_out = f"timed out after {limit_seconds:g} s; it may work, but was too slow to be checked"
        return self._finding or Finding(name=self._name, mark=Mark.SLOW, found=timed_out)
