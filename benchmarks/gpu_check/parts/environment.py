"""Versions, imports with their seconds, what nvidia-smi prints and what is read from it, and the choices made here."""

import importlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from benchmarks.gpu_check.report import Report
from pipelines.cluster import node_health
from pipelines.commands import NoAnswer
from pipelines.doctor import gpus
from pipelines.doctor.finding import Mark
from pipelines.doctor.surroundings import Surroundings
from pipelines.nvidia_smi import table_command

REQUIRED = (
    "torch",
    "deepspeed",
    "megatron.core.tensor_parallel",
    "ufork.train.session",
    "ufork.infer.draw",
    "ufork.planning.planner",
)
"""Imports that training, drawing and planning need, in this order: later ones find the earlier ones loaded."""
OPTIONAL = ("triton", "transformers", "flash_attn", "flash_attn_interface", "liger_kernel", "apex", "pytest")

STATE_FIELDS = ("clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "persistence_mode", "mig.mode.current")
QUERIES = {
    "node health": ("gpu", node_health.GPU_FIELDS),
    "processes": ("compute-apps", node_health.PROCESS_FIELDS),
    "doctor": ("gpu", gpus.GPU_FIELDS),
    "state": ("gpu", STATE_FIELDS),
}
"""Tables and fields of nvidia-smi that are reported as they are printed."""
DRIVER_SECONDS = 15.0


def run(report: Report, *, cpu: bool) -> None:
    """Fails if something required cannot be imported, or the driver's answer cannot be read."""
    report.figure("python", platform.python_version())
    seconds = {}
    for name in (*REQUIRED, *OPTIONAL):
        start = time.perf_counter()
        trouble = _trouble_of_import(name)
        seconds[name] = trouble or round(time.perf_counter() - start, 2)
        if name in REQUIRED:
            report.check(f"import {name}", not trouble, trouble)
    report.figure("import_seconds", seconds)
    report.figure("versions", _versions())
    from pipelines.doctor.probes import torch_probe

    probed = torch_probe()
    report.figure("torch", probed)
    report.headline(f"torch {probed['version']}")
    _deepspeed_ops(report)
    if not cpu:
        _gpus(report)
    _choices(report, cpu=cpu)


def _trouble_of_import(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything
        return f"{type(error).__name__}: {error}"
    return ""


def _versions() -> dict[str, str]:
    packages = ("torch", "deepspeed", "megatron-core", "triton", "transformers", "flash-attn", "liger-kernel", "apex")
    found = {}
    for package in (*packages, "nvidia-nccl-cu13", "nvidia-nccl-cu12", "numpy", "pydantic"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _deepspeed_ops(report: Report) -> None:
    """Counts the operators that DeepSpeed says it could compile, which takes it a while to find out."""
    import deepspeed

    start = time.perf_counter()
    compatible = dict(deepspeed.ops.__compatible_ops__)
    report.figure(
        "deepspeed_ops",
        {"seconds": round(time.perf_counter() - start, 3), "compatible": sum(map(bool, compatible.values()))},
    )


def _gpus(report: Report) -> None:
    import torch

    properties = torch.cuda.get_device_properties(0)
    report.figure(
        "device",
        {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "count": torch.cuda.device_count(),
        },
    )
    report.headline(f"{torch.cuda.device_count()} x {properties.name}")
    ask_nvidia_smi(report, os.environ, num_gpus=torch.cuda.device_count())


def ask_nvidia_smi(report: Report, environment: Mapping[str, str], *, num_gpus: int) -> None:
    """Reports what nvidia-smi prints, and what the node check and the doctor read from it."""
    around = Surroundings(
        environment=environment, folder=Path(), home=Path.home(), has_gpu=True, timeout_seconds=DRIVER_SECONDS
    )
    for name, (kind, fields) in QUERIES.items():
        try:
            printed = around.ask(*table_command(kind, fields))
        except NoAnswer as reason:
            printed = f"no answer: {reason}"
        report.figure(f"nvidia-smi, {name}", printed)
    health = node_health.check_gpus(num_gpus, environment)
    report.figure("node health", asdict(health))
    report.check("node health reads nvidia-smi", len(health.names) >= num_gpus, "; ".join(health.faults))
    finding = gpus.gpus(around)
    report.figure("doctor", finding.found)
    report.check("doctor reads nvidia-smi", finding.mark is Mark.OK, finding.found)


def _choices(report: Report, *, cpu: bool) -> None:
    """Reports which kernels a model uses on this device."""
    import torch

    from ufork.model.kernels import PLAIN, describe_kernels

    device = torch.device("cpu" if cpu else "cuda")
    for dtype in (torch.float32, torch.bfloat16):
        kernels = describe_kernels(device, dtype)
        report.figure(f"kernels, {dtype}", kernels)
    for operation, name in kernels.items():
        if not cpu and name.startswith(PLAIN):
            report.headline(f"{operation}: {name}")
