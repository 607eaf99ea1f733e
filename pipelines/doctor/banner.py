"""The short form of the page, for the head of a training log: what is known at once, and problems by name."""

import logging
import platform
from pathlib import Path

from pipelines.doctor import machine
from pipelines.doctor.examine import examine
from pipelines.doctor.finding import Finding, Mark, Surroundings
from pipelines.doctor.packages import torch_finding
from pipelines.doctor.probes import torch_probe
from ufork.run_folder import versions_in_use

log = logging.getLogger(__name__)

TOLD_PACKAGES = ("python", "deepspeed", "megatron-core")


def _torch_here(around: Surroundings) -> Finding:
    """In this process, which has imported it already."""
    return torch_finding(torch_probe(), has_gpu=around.has_gpu)


QUICK_CHECKS = (
    machine.cores_and_memory,
    machine.open_files,
    machine.run_folder,
    machine.shared_memory,
    _torch_here,
)


def log_head(folder: Path, *, has_gpu: bool) -> None:
    """Logs a handful of lines on this machine; never raises, and takes no seconds.

    Args:
        folder: of the run.
        has_gpu: whether the machine has an NVIDIA device.
    """
    around = Surroundings(environment={}, folder=folder, home=Path(), has_gpu=has_gpu)
    findings = examine(around, {"head": QUICK_CHECKS})["head"]
    versions = versions_in_use()
    log.info("machine: %s, %s", platform.node(), ", ".join(f"{name} {versions[name]}" for name in TOLD_PACKAGES))
    for each in findings:
        if each.mark is Mark.OK:
            log.info("  %s: %s", each.name, each.found)
        else:
            log.warning("  %s: %s: %s; to mend it: %s", each.mark, each.name, each.found, each.remedy or "ufork doctor")
