"""The banner of a training log: the doctor's quick checks in a few lines, with problems as warnings."""

import logging
import platform
from pathlib import Path

from pipelines.doctor import machine
from pipelines.doctor.examine import examine
from pipelines.doctor.finding import Finding, Mark
from pipelines.doctor.packages import torch_finding
from pipelines.doctor.probes import torch_probe
from pipelines.doctor.surroundings import Surroundings
from ufork.run_folder import versions_in_use

log = logging.getLogger(__name__)

SHOWN_PACKAGES = ("python", "deepspeed", "megatron-core")
TIMEOUT_SECONDS = 10.0
"""Time limit of the quick checks. None starts a program, but a disk that hangs should not delay training for long."""


def _torch_here(around: Surroundings) -> Finding:
    """Probes torch in this process, which has imported it already."""
    return torch_finding(torch_probe(), has_gpu=around.has_gpu)


QUICK_CHECKS = (
    machine.cores_and_memory,
    machine.open_files,
    machine.run_folder,
    machine.shared_memory,
    _torch_here,
)


def log_banner(folder: Path, *, has_gpu: bool) -> None:
    """Logs a few lines about this machine; never raises and starts no program.

    Args:
        folder: of the run.
        has_gpu: whether the machine has an NVIDIA device.
    """
    around = Surroundings(environment={}, folder=folder, home=Path(), has_gpu=has_gpu, timeout_seconds=TIMEOUT_SECONDS)
    findings = examine(around, {"banner": QUICK_CHECKS})["banner"]
    versions = versions_in_use()
    log.info("machine: %s, %s", platform.node(), ", ".join(f"{name} {versions[name]}" for name in SHOWN_PACKAGES))
    for each in findings:
        if each.mark is Mark.OK:
            log.info("  %s: %s", each.name, each.found)
        else:
            log.warning("  %s: %s: %s; to fix it: %s", each.mark, each.name, each.found, each.remedy or "ufork doctor")
