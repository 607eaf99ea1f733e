"""The device of each rank: all ranks of a job compute on CUDA, or all on the CPU.

    report_device: what torch can use here -> DeviceReport -> the job's store
    rank 0: all reports -> `decide` -> one decision, or one error for every rank -> the store
    agree_on_device: -> this rank's device

A rank that fell back to the CPU by itself would wait in gloo while the others initialize NCCL.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from ufork.config import Config
from ufork.errors import ConfigError, MachineError, PeerError, UforkError, first_line
from ufork.model.cuda_device import NATIVE_BF16_CAPABILITY, run_kernel
from ufork.parallel.nvidia_devices import cpu_request, has_cuda_device
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.job_store import signed, verified

log = logging.getLogger(__name__)

_DECISION = "device/decision"
INFORM_SECONDS = 30.0
"""How long rank 0 waits for the other ranks to read an error."""
_ERRORS: Mapping[str, type[UforkError]] = {error.__name__: error for error in (ConfigError, MachineError)}
_USE_CPU = "to train on the CPU, set CUDA_VISIBLE_DEVICES= (empty) for all ranks"


class DeviceReport(Config):
    """What one rank can compute on."""

    rank: int
    local_rank: int
    host: str
    kind: str
    """cuda or cpu."""
    index: int = 0
    """Of the CUDA device among those that this process sees."""
    num_visible: int = 0
    """CUDA devices that this process sees."""
    name: str = ""
    """Of the CUDA device, with its compute capability."""
    uuid: str = ""
    """Of the CUDA device."""
    native_bf16: bool = False
    """Whether the device computes bf16 natively."""
    requested: str = ""
    """The variable that asks for the CPU."""
    trouble: str = ""
    """Why torch cannot use the NVIDIA devices of the machine."""

    @property
    def where(self) -> str:
        """Rank and host, for messages."""
        return f"rank {self.rank} on {self.host}"


class Decision(Config):
    """What rank 0 has decided for all ranks."""

    native_bf16: bool = False
    """Whether the devices of all ranks compute bf16 natively."""
    error: str = ""
    """Name of an error's class, and `message` its text; empty when the ranks agree."""
    message: str = ""
    rank: int = 0
    """The rank that is at fault."""


def report_device(rank_env: RankEnvironment, environment: Mapping[str, str]) -> DeviceReport:
    """Returns what this rank computes on; selects its CUDA device and runs a kernel on it.

    Ranks of a machine take its devices in the order of their local ranks. A rank that sees only its own device, as
    Slurm's --gpus-per-task arranges, takes that one.

    Args:
        rank_env: this rank.
        environment: CUDA_VISIBLE_DEVICES and DS_ACCELERATOR are read.
    """
    here = {"rank": rank_env.rank, "local_rank": rank_env.local_rank, "host": socket.gethostname()}
    on_cpu = {**here, "kind": "cpu", "native_bf16": torch.cpu._is_avx512_bf16_supported()}
    if request := cpu_request(environment):
        return DeviceReport(**on_cpu, requested=request if has_cuda_device() else "")
    try:
        torch.cuda.init()
        num_visible = torch.cuda.device_count()
        index = rank_env.local_rank % num_visible
        torch.cuda.set_device(index)
        run_kernel(torch.device("cuda", index))
        properties = torch.cuda.get_device_properties(index)
    except Exception as error:  # of many kinds: an old driver, a build without CUDA, a device that fell off the bus
        trouble = f"{first_line(error)} (torch {torch.__version__})" if has_cuda_device() else ""
        return DeviceReport(**on_cpu, trouble=trouble)
    return DeviceReport(
        **here,
        kind="cuda",
        index=index,
        num_visible=num_visible,
        name=f"{properties.name} (compute capability {properties.major}.{properties.minor})",
        uuid=str(properties.uuid),
        native_bf16=properties.major >= NATIVE_BF16_CAPABILITY,
    )


def agree_on_device(
    store: dist.Store, report: DeviceReport, world_size: int, timeout: timedelta, secret: str = ""
) -> Decision:
    """Returns the decision of rank 0 about all ranks' devices.

    Args:
        store: of the job.
        report: of this rank.
        world_size: ranks of the job.
        timeout: how long ranks wait for each other's report.
        secret: of the job, with which reports and decision are signed.

    Raises:
        MachineError: on every rank: torch cannot use the NVIDIA devices of a machine, or only some machines have them.
        ConfigError: on every rank: some ranks were asked to compute on the CPU, or ranks would share a device.
        PeerError: a rank did not report in time.
    """
    key = f"device/{report.rank}"
    store.set(key, signed(report.model_dump(mode="json"), key, secret))
    if report.rank == 0:
        reports = _read_reports(store, world_size, timeout, secret)
        try:
            decision = decide(reports)
        except UforkError as error:
            rank = error.fields.get("rank") or 0
            decision = Decision(error=type(error).__name__, message=str(error), rank=int(rank))
        store.set(_DECISION, signed(decision.model_dump(mode="json"), _DECISION, secret))
    else:
        store.wait([_DECISION], timeout)
        decision = Decision.model_validate(verified(store.get(_DECISION), _DECISION, secret))
        store.set(f"device/informed/{report.rank}", "")
    if decision.error:
        if report.rank == 0:
            _wait_until_informed(store, world_size)
        raise _ERRORS[decision.error](decision.message, rank=decision.rank)
    _log_choice(report, decision)
    return decision


def decide(reports: Sequence[DeviceReport]) -> Decision:
    """Returns the decision for the ranks with `reports`, in the order of ranks.

    Raises:
        MachineError: torch cannot use the NVIDIA devices of a machine, or only some machines have them.
        ConfigError: some ranks were asked to compute on the CPU, or ranks would share a device.
    """
    if ill := [report for report in reports if report.trouble]:
        others = f"; so do {len(ill) - 1} other ranks" if len(ill) > 1 else ""
        raise MachineError(
            f"{ill[0].where}: the machine has NVIDIA devices, and torch cannot use them: {ill[0].trouble}{others};"
            f" fix the driver, or install the build of torch that fits it (`ufork doctor`); {_USE_CPU}",
            rank=ill[0].rank,
        )
    on_cpu = [report for report in reports if report.kind == "cpu"]
    on_cuda = [report for report in reports if report.kind == "cuda"]
    if on_cpu and on_cuda:
        reason = on_cpu[0].requested or "it has no NVIDIA device"
        raise (ConfigError if on_cpu[0].requested else MachineError)(
            f"{len(on_cuda)} of {len(reports)} ranks compute on CUDA, and {len(on_cpu)} on the CPU, the first of them"
            f" {on_cpu[0].where} ({reason}); start all ranks on machines with GPUs, or {_USE_CPU}",
            rank=on_cpu[0].rank,
        )
    _refuse_shared(on_cuda)
    return Decision(native_bf16=all(report.native_bf16 for report in reports))


def _refuse_shared(reports: Sequence[DeviceReport]) -> None:
    """Refuses ranks of different local ranks on one device.

    Ranks with the same local rank share a device on purpose: no launcher numbers the ranks of a machine like that.
    """
    first_on: dict[str, DeviceReport] = {}
    for report in reports:
        other = first_on.setdefault(report.uuid, report)
        if other.local_rank != report.local_rank:
            here = [each for each in reports if each.host == report.host]
            raise ConfigError(
                f"{report.host} has {len(here)} ranks and {len({each.uuid for each in here})} GPUs for them: ranks"
                f" {other.rank} and {report.rank} would share one, which NCCL refuses; start one rank per GPU, or give"
                " each rank its own (--gpus-per-task=1)",
                rank=report.rank,
            )


def _read_reports(store: dist.Store, world_size: int, timeout: timedelta, secret: str) -> list[DeviceReport]:
    keys = [f"device/{rank}" for rank in range(world_size)]
    deadline = time.monotonic() + timeout.total_seconds()
    for rank, key in enumerate(keys):
        try:
            store.wait([key], timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except dist.DistError as error:
            raise PeerError(
                f"rank {rank} of {world_size} has not reported its device within {timeout.total_seconds():g} s: its"
                " driver may hang; run nvidia-smi on its node",
                timed_out=True,
            ) from error
    return [DeviceReport.model_validate(verified(store.get(key), key, secret)) for key in keys]


def _wait_until_informed(store: dist.Store, world_size: int) -> None:
    """Rank 0 serves the store: if it left at once, the others would see a lost connection instead of the error."""
    with contextlib.suppress(dist.DistError):
        store.wait([f"device/informed/{rank}" for rank in range(1, world_size)], timedelta(seconds=INFORM_SECONDS))


def _log_choice(report: DeviceReport, decision: Decision) -> None:
    if report.kind == "cuda":
        bf16 = "" if decision.native_bf16 else "; not all of the job's devices compute bf16 natively"
        log.info("device: cuda:%d of %d, %s%s", report.index, report.num_visible, report.name, bf16)
    elif report.requested:
        log.warning("device: cpu, although the machine has NVIDIA devices: %s", report.requested)
    else:
        log.info("device: cpu; the machine has no NVIDIA device")
