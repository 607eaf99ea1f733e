"""Checks of Python, of the packages that training uses, and of the optional ones.

metadata of a distribution, or an import in a separate process (`probes.py`) -> Finding
"""

import importlib.util
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from pipelines.commands import NoAnswer, Reason
from pipelines.doctor.finding import Finding, Mark, mark_of
from pipelines.doctor.surroundings import Surroundings

PREPARATION = ("pyarrow", "datasets", "py3langid")
OLDEST_PYTHON = (3, 11)
GET_APEX = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install"
    " --no-build-isolation ."
)
TRY_LATER = "run ufork doctor again when the machine is less busy"


def python(around: Surroundings) -> Finding:
    """Checks the interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding(name="Python", found=f"{version}, {sys.executable}", required=True)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        name="Python", mark=Mark.PROBLEM, found=version, remedy=f"install Python {oldest} or newer", required=True
    )


def torch(around: Surroundings) -> Finding:
    """Checks torch's version and build, and whether it can use the devices of this machine."""
    try:
        return torch_finding(around.ask_python("torch"), has_gpu=around.has_gpu)
    except NoAnswer as reason:
        return _without_answer("torch", reason)


def torch_finding(probed: Mapping[str, Any], *, has_gpu: bool) -> Finding:
    """Returns the finding for what `pipelines.doctor.probes.torch_probe` returned."""
    build = f"built for CUDA {probed['cuda']}" if probed["cuda"] else "built for CPUs"
    nccl = f"NCCL {probed['nccl']}" if probed["nccl"] else "without NCCL"
    found = f"{probed['version']}, {build}, {nccl}"
    if devices := probed["devices"]:
        kinds = "; ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices))
        return Finding(name="torch", found=f"{found}, uses {kinds}", required=True)
    if not has_gpu:
        return Finding(name="torch", found=found, instead="trains on the CPU, over gloo", required=True)
    return Finding(
        name="torch",
        mark=Mark.PROBLEM,
        found=f"{found}, cannot use the GPUs: {probed['trouble']}",
        instead="does not train, unless an empty CUDA_VISIBLE_DEVICES asks for the CPU",
        remedy=_another_build(probed) if not probed["cuda"] else f"install a newer driver; or {_another_build(probed)}",
    )


def _another_build(probed: Mapping[str, Any]) -> str:
    """Returns how to install a build of this torch for CUDA: which CUDA fits is up to the driver and the GPU."""
    version = probed["version"].partition("+")[0]
    return (
        f"pip install --force-reinstall torch=={version} --index-url https://download.pytorch.org/whl/cu130; with a"
        " driver older than 580, or a GPU older than Turing (compute capability 7.5), cu126 in place of cu130"
    )


def flash_attention(around: Surroundings) -> Finding:
    """Checks whether flash-attn can be imported and its kernel runs."""
    name, instead = "flash-attn", "uses the FlashAttention-2 kernels that torch ships"
    if importlib.util.find_spec("flash_attn") is None:
        remedy = "install torch first, then pip install ninja && pip install flash-attn --no-build-isolation"
        return Finding(name=name, mark=Mark.ABSENT, found="not installed", instead=instead, remedy=remedy)
    try:
        probed = around.ask_python("flash_attention")
    except NoAnswer as reason:
        if reason.reason is Reason.TIMED_OUT:
            return _slow(name, reason)
        return Finding(
            name=name,
            mark=Mark.PROBLEM,
            found=f"installed, but fails: {reason}",
            instead="uses torch's kernels if the import fails; if only the kernel fails, so does training",
            remedy="pip uninstall flash-attn, then build it for this torch: pip install flash-attn"
            " --no-build-isolation",
        )
    if probed["ran"]:
        return Finding(name=name, found=f"{probed['version']}, its kernel runs")
    return Finding(name=name, found=f"{probed['version']}, importable; no GPU to run it on", instead=instead)


def apex(around: Surroundings) -> Finding:
    """Checks for NVIDIA's apex, which is not the unrelated package of that name on PyPI."""
    name, instead = "NVIDIA apex", "uses its own RMSNorm and torch's fused AdamW"
    try:
        probed = around.ask_python("apex")
    except NoAnswer as reason:
        if reason.reason is Reason.TIMED_OUT:
            return _slow(name, reason)
        return Finding(
            name=name, mark=Mark.PROBLEM, found=f"the probe failed: {reason}", instead=instead, remedy=GET_APEX
        )
    if probed["kernels"]:
        return Finding(name=name, found=", ".join(probed["kernels"]), instead="uses them on GPUs")
    if probed["genuine"]:
        found, remedy = "NVIDIA's, but without its CUDA extensions", f"pip uninstall apex; {GET_APEX}"
    elif probed["present"]:
        found = "another package of that name (PyPI's apex is a web toolkit)"
        remedy = f"pip uninstall apex; {GET_APEX}"
    else:
        return Finding(name=name, mark=Mark.ABSENT, found="not installed", instead=instead, remedy=GET_APEX)
    return Finding(name=name, mark=Mark.PROBLEM, found=found, instead=instead, remedy=remedy)


def megatron_core(around: Surroundings) -> Finding:
    """Checks that megatron-core, used for tensor parallelism, can be imported."""
    return _importable("megatron", "megatron-core", around)


def deepspeed(around: Surroundings) -> Finding:
    """Checks that DeepSpeed, used for ZeRO, can be imported."""
    return _importable("deepspeed", "deepspeed", around)


def simplejpeg(around: Surroundings) -> Finding:
    """Checks that simplejpeg, the JPEG decoder, can be imported."""
    return _importable("simplejpeg", "simplejpeg", around)


def data_preparation(around: Surroundings) -> Finding:
    """Checks the packages that only some kinds of input need."""
    missing = [package for package in PREPARATION if not installed_version(package)]
    found = ", ".join(f"{package} {installed_version(package)}" for package in PREPARATION if package not in missing)
    if not missing:
        return Finding(name="data preparation", found=found)
    return Finding(
        name="data preparation",
        mark=Mark.ABSENT,
        found=f"no {', '.join(missing)}" + (f"; {found}" if found else ""),
        instead="prepares only inputs that do not need them",
        remedy="pip install ufork[prep]",
    )


def _importable(probe: str, package: str, around: Surroundings) -> Finding:
    try:
        return Finding(name=package, found=around.ask_python(probe)["version"], required=True)
    except NoAnswer as reason:
        return _without_answer(package, reason)


def _without_answer(package: str, reason: NoAnswer) -> Finding:
    """Returns the finding for a required package that is not installed, fails or times out."""
    installed = installed_version(package)
    if installed and mark_of(reason) is Mark.SLOW:
        return _slow(package, reason, required=True)
    return Finding(
        name=package,
        mark=Mark.PROBLEM if installed else Mark.ABSENT,
        found=f"{installed}, but: {reason}" if installed else "not installed",
        remedy=f"pip install -c constraints.txt {package}",
        required=True,
    )


def _slow(package: str, reason: NoAnswer, *, required: bool = False) -> Finding:
    found = f"installed, but slow to import: {reason}"
    return Finding(name=package, mark=Mark.SLOW, found=found, remedy=TRY_LATER, required=required)


def installed_version(package: str) -> str | None:
    """Returns the version that the distribution declares; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
