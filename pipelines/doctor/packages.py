"""Checks of Python, of the packages that train, and of what they use.

metadata of a distribution, or an import in a process of its own (`probes.py`) -> Finding
"""

import importlib.util
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from pipelines.commands import NoAnswer, ask_python
from pipelines.doctor.finding import Finding, Mark, Surroundings

PREPARATION = ("pyarrow", "datasets", "py3langid")
OLDEST_PYTHON = (3, 11)
GET_APEX = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install"
    " --no-build-isolation ."
)


def python(around: Surroundings) -> Finding:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding(name="Python", found=f"{version}, {sys.executable}", required=True)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding(name="Python", mark=Mark.PROBLEM, found=version, remedy=f"Python {oldest} or newer", required=True)


def torch(around: Surroundings) -> Finding:
    """Its version and build, and whether it can use the devices that are here."""
    try:
        return torch_finding(ask_python("torch", around), has_gpu=around.has_gpu)
    except NoAnswer as reason:
        return _broken("torch", str(reason))


def torch_finding(told: Mapping[str, Any], *, has_gpu: bool) -> Finding:
    """What follows from `pipelines.doctor.probes.torch_probe`."""
    build = f"built for CUDA {told['cuda']}" if told["cuda"] else "built for CPUs"
    nccl = f"NCCL {told['nccl']}" if told["nccl"] else "without NCCL"
    found = f"{told['version']}, {build}, {nccl}"
    if devices := told["devices"]:
        kinds = "; ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices))
        return Finding(name="torch", found=f"{found}, uses {kinds}", required=True)
    if not has_gpu:
        return Finding(name="torch", found=found, instead="trains on the CPU, over gloo", required=True)
    return Finding(
        name="torch",
        mark=Mark.PROBLEM,
        found=f"{found}, cannot use the GPUs: {told['trouble']}",
        instead="trains on the CPU, over gloo, though GPUs are here",
        remedy="a build of torch for the driver's CUDA (pytorch.org tells which), or a newer driver",
    )


def flash_attention(around: Surroundings) -> Finding:
    """Whether it can be imported, and computes."""
    name, instead = "flash-attn", "uses torch's own attention, over segments padded to one length"
    if importlib.util.find_spec("flash_attn") is None:
        remedy = "pip install ninja && pip install flash-attn --no-build-isolation (with torch there before)"
        return Finding(name=name, mark=Mark.ABSENT, found="not installed", instead=instead, remedy=remedy)
    try:
        told = ask_python("flash_attention", around)
    except NoAnswer as reason:
        remedy = "pip uninstall flash-attn, then build it for this torch: pip install flash-attn --no-build-isolation"
        return Finding(
            name=name,
            mark=Mark.PROBLEM,
            found=f"installed, but fails: {reason}",
            instead="uses torch's own attention if the import fails; if only the kernel does, training fails",
            remedy=remedy,
        )
    if told["ran"]:
        return Finding(name=name, found=f"{told['version']}, its kernel runs")
    return Finding(name=name, found=f"{told['version']}, importable; no GPU to run it on", instead=instead)


def apex(around: Surroundings) -> Finding:
    """NVIDIA's, told from PyPI's unrelated package of that name."""
    instead = "uses its own RMSNorm and torch's fused AdamW"
    try:
        told = ask_python("apex", around)
    except NoAnswer as reason:
        return Finding(
            name="NVIDIA apex", mark=Mark.PROBLEM, found=f"cannot be asked: {reason}", instead=instead, remedy=GET_APEX
        )
    if told["kernels"]:
        return Finding(name="NVIDIA apex", found=", ".join(told["kernels"]), instead="uses them on GPUs")
    if told["genuine"]:
        found, remedy = "NVIDIA's, but without its CUDA extensions", f"pip uninstall apex; {GET_APEX}"
    elif told["present"]:
        found = "another package of that name (PyPI's apex is a web toolkit)"
        remedy = f"pip uninstall apex; {GET_APEX}"
    else:
        return Finding(name="NVIDIA apex", mark=Mark.ABSENT, found="not installed", instead=instead, remedy=GET_APEX)
    return Finding(name="NVIDIA apex", mark=Mark.PROBLEM, found=found, instead=instead, remedy=remedy)


def megatron_core(around: Surroundings) -> Finding:
    """Its tensor parallelism."""
    return _importable("megatron", "megatron-core", around)


def deepspeed(around: Surroundings) -> Finding:
    """Its ZeRO engine."""
    return _importable("deepspeed", "deepspeed", around)


def simplejpeg(around: Surroundings) -> Finding:
    """What decodes JPEG files."""
    return _importable("simplejpeg", "simplejpeg", around)


def data_preparation(around: Surroundings) -> Finding:
    """The packages that only some sources want."""
    missing = [package for package in PREPARATION if not installed_version(package)]
    found = ", ".join(f"{package} {installed_version(package)}" for package in PREPARATION if package not in missing)
    if not missing:
        return Finding(name="data preparation", found=found)
    return Finding(
        name="data preparation",
        mark=Mark.ABSENT,
        found=f"no {', '.join(missing)}" + (f"; {found}" if found else ""),
        instead="prepares sources that do not want them",
        remedy="pip install ufork[prep]",
    )


def _importable(probe: str, package: str, around: Surroundings) -> Finding:
    try:
        return Finding(name=package, found=ask_python(probe, around)["version"], required=True)
    except NoAnswer as reason:
        return _broken(package, str(reason))


def _broken(package: str, reason: str) -> Finding:
    installed = installed_version(package)
    return Finding(
        name=package,
        mark=Mark.PROBLEM if installed else Mark.ABSENT,
        found=f"{installed}, but: {reason}" if installed else "not installed",
        remedy=f"pip install -c constraints.txt {package}",
        required=True,
    )


def installed_version(package: str) -> str | None:
    """As its distribution says; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
