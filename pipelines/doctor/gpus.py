"""Checks of the GPUs: what the driver lists, how they are linked, and which kernels training uses on them.

nvidia-smi, and torch in a separate process (`probes.py`) -> Finding
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipelines.commands import NoAnswer
from pipelines.doctor.finding import Finding, Mark, mark_of
from pipelines.doctor.surroundings import Surroundings
from pipelines.nvidia_smi import PROGRAM, number, parse_table, table_command

GPU_FIELDS = ("name", "memory.total", "driver_version")
"""Fields of nvidia-smi; memory is in MiB."""


def gpus(around: Surroundings) -> Finding:
    """Lists the devices of the driver, whether torch can use them or not."""
    if not around.has_program(PROGRAM):
        return Finding(
            name="GPUs",
            mark=Mark.ABSENT,
            found="no nvidia-smi on the PATH",
            instead="takes those that torch can use" if around.has_gpu else "trains on the CPU",
            remedy="use a machine with NVIDIA GPUs and their driver",
        )
    try:
        table = parse_table(around.ask(*table_command("gpu", GPU_FIELDS)), GPU_FIELDS)
    except NoAnswer as reason:
        return _without_list(mark_of(reason), f"nvidia-smi gives no answer: {reason}")
    if not table.rows:
        return _without_list(
            Mark.PROBLEM, f"nvidia-smi lists no GPU: {'; '.join(table.remarks) or 'it prints nothing'}"
        )
    kinds = [_kind_of(gpu) for gpu in table.rows]
    each = "; ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    found = f"{each}; driver {table.rows[0]['driver_version']}"
    if not table.remarks:
        return Finding(name="GPUs", found=found)
    return Finding(
        name="GPUs",
        mark=Mark.PROBLEM,
        found=f"{found}; nvidia-smi: {'; '.join(table.remarks)}",
        remedy="ask the administrator of the node",
    )


def _kind_of(gpu: Mapping[str, str]) -> str:
    mib = number(gpu["memory.total"])
    return gpu["name"] if mib is None else f"{gpu['name']}, {mib / 1024:.0f} GB"


def _without_list(mark: Mark, found: str) -> Finding:
    return Finding(
        name="GPUs",
        mark=mark,
        found=found,
        instead="ends with an error if torch cannot use them",
        remedy="run nvidia-smi by hand; if the driver hangs, restart the node",
    )


def gpu_links(around: Surroundings) -> Finding:
    """Reports how the GPUs of the machine are linked: by NVLink (NV and a number), or by PCIe and the host."""
    name = "GPU links"
    if not around.has_program(PROGRAM):
        return Finding(name=name, found="no GPUs")
    try:
        kinds = _links_in(around.ask(PROGRAM, "topo", "-m"))
    except NoAnswer as reason:
        return Finding(name=name, mark=mark_of(reason), found=f"nvidia-smi topo gives no answer: {reason}")
    if not kinds:
        return Finding(name=name, found="one GPU, or none")
    found = ", ".join(f"{count} pairs by {kind}" for kind, count in kinds.most_common())
    if all(kind.startswith("NV") for kind in kinds):
        return Finding(name=name, found=found)
    return Finding(
        name=name,
        found=f"{found} (PIX, PXB, PHB, NODE, SYS: no NVLink)",
        instead="is slower with tensor parallelism (layout.trunk.tp) over pairs without NVLink",
    )


def _links_in(matrix: str) -> Counter[str]:
    """Returns the links between pairs of GPUs in the output of `nvidia-smi topo -m`, by kind."""
    rows = [line.split() for line in matrix.splitlines() if line.startswith("GPU") and "X" in line.split()]
    return Counter(row[1 + other] for number, row in enumerate(rows) for other in range(number))


def gpu_kernels(around: Surroundings) -> Finding:
    """Runs a kernel on each GPU, and reports the precision and the kernels that training chooses."""
    name = "kernels"
    if not around.has_gpu:
        return Finding(name=name, found="those of the CPU")
    try:
        return kernels_finding(around.ask_python("kernels"))
    except NoAnswer as reason:
        return Finding(name=name, mark=mark_of(reason), found=f"the probe failed: {reason}")


def kernels_finding(probed: Mapping[str, Any]) -> Finding:
    """Returns the finding for what `pipelines.doctor.probes.kernels_probe` returned."""
    name = "kernels"
    if not probed["capabilities"]:
        return Finding(name=name, mark=Mark.ABSENT, found="torch can use no GPU")
    if probed["failing"]:
        return Finding(
            name=name,
            mark=Mark.PROBLEM,
            found="; ".join(probed["failing"]),
            instead="ends with an error on these GPUs",
            remedy="no kernel image: another build of torch (see torch above); otherwise look for Xid in dmesg",
        )
    capabilities = ", ".join(dict.fromkeys(probed["capabilities"]))
    kernels = "; ".join(f"{operation}: {kernel}" for operation, kernel in probed["kernels"].items())
    emulates = probed["precision"] == "fp32"
    return Finding(
        name=name,
        found=f"compute capability {capabilities}; {kernels}",
        instead="trains in fp32: these GPUs only emulate bf16" if emulates else "trains in bf16 (train.precision=auto)",
    )
