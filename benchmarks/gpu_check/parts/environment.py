"""Versions, imports with their seconds, what nvidia-smi prints and what is read from it, and the choices made here."""

import importlib
import platform
import time
from importlib import metadata

from benchmarks.gpu_check.report import Report

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
        _gpu(report)
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


def _gpu(report: Report) -> None:
    import os
    from pathlib import Path

    import torch

    from pipelines.cluster import node_health
    from pipelines.commands import NoAnswer, ask
    from pipelines.doctor.machine import gpus
    from pipelines.doctor.surroundings import Surroundings

    for name, query in (
        ("node_health", ",".join(node_health.GPU_QUERY)),
        ("doctor", "name,memory.total,driver_version"),
        ("clocks", "clocks.sm,clocks.max.sm,power.draw,power.limit,persistence_mode,compute_mode,mig.mode.current"),
    ):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        try:
            raw = ask(command, environment=os.environ, timeout_seconds=15)
        except NoAnswer as reason:
            raw = f"no answer: {reason}"
        report.figure(f"nvidia_smi_{name}", raw)
    names, faults = node_health.gpu_faults(torch.cuda.device_count(), os.environ)
    report.figure("node_health", {"gpus": names, "faults": faults})
    report.check("nvidia-smi is read", bool(names), "; ".join(faults) or "no GPU in its list")
    around = Surroundings(environment=os.environ, folder=Path(), home=Path.home(), has_gpu=True, timeout_seconds=15)
    found = gpus(around)
    report.figure("doctor", found.found)
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


def _choices(report: Report, *, cpu: bool) -> None:
    """Reports which kernels a model uses on this device."""
    import torch

    from ufork.model.kernels import describe_kernels

    device = torch.device("cpu" if cpu else "cuda")
    for dtype in (torch.float32, torch.bfloat16):
        report.figure(f"kernels, {dtype}", describe_kernels(device, dtype))
