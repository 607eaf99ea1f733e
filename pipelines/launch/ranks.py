"""From one command to the ranks of a job.

environment -> a rank's address, where torchrun or srun has started this process as one rank
            -> otherwise N processes of this machine (N = 1: this process itself)
"""

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Mapping, MutableMapping
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from pipelines.launch.local_ranks import free_port, start_local_ranks
from ufork.errors import ConfigError
from ufork.parallel.rank_environment import RankEnvironment

SLURM_FIRST_PORT, SLURM_NUM_PORTS = 15_000, 15_000
"""Below the ports that Linux hands out by itself (from 32768)."""
PRELOADED_MODULES = (
    "torch",
    "torch._dynamo",
    "deepspeed",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
)
"""Imported once, before the ranks of this machine are forked from the server that has them. Those below a package are
what `deepspeed.initialize` would else import on every rank, which takes seconds."""


def run_ranks(function: Callable[..., Any], num_ranks: int | None, *args: Any) -> None:
    """Calls `function(address, *args)` on every rank of the job that this process belongs to, or starts one here.

    Args:
        function: importable by name, as `args` are by pickle.
        num_ranks: of the job; None takes what torchrun or srun started, or else one.
        args: handed to every rank after its address.

    Raises:
        ConfigError: `num_ranks` is not the number that torchrun or srun started.
        RankFailedError: a rank of this machine failed; all others have been ended.
    """
    prepare_environment(os.environ, num_local_ranks=num_ranks or 1)
    rank_env = joined_environment(os.environ, num_ranks)
    if rank_env is None and num_ranks in (None, 1):
        rank_env = RankEnvironment(
            rank=0, world_size=1, local_rank=0, master_address="127.0.0.1", master_port=free_port()
        )
    if rank_env is not None:
        function(rank_env, *args)
        return
    assert num_ranks is not None
    start_local_ranks(function, num_ranks, *args, context=process_context())


def prepare_environment(environment: MutableMapping[str, str], *, num_local_ranks: int) -> None:
    """Sets what torch and DeepSpeed read when they are imported, where the user has not.

    Without a CUDA device DeepSpeed must be told to use the CPU; and several ranks on one machine share its cores.
    """
    if not has_cuda_device():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    if num_local_ranks > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_local_ranks)))


def has_cuda_device() -> bool:
    """Whether an NVIDIA device is here, without the seconds that asking torch takes."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def process_context(preloaded_modules: tuple[str, ...] = PRELOADED_MODULES) -> BaseContext:
    """How this machine starts ranks: forked from a warm server, or fresh where CUDA may not be forked."""
    if has_cuda_device():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded_modules))
    return context


def joined_environment(environment: Mapping[str, str], num_ranks: int | None) -> RankEnvironment | None:
    """The address that torchrun or srun gave this process; None where neither started it as one of several.

    Raises:
        ConfigError: they started another number of ranks than `num_ranks`.
    """
    rank_env = _torchrun_environment(environment) or _slurm_environment(environment)
    if rank_env is None or num_ranks in (None, rank_env.world_size):
        return rank_env
    if rank_env.world_size == 1:  # an interactive shell of one task: what is asked for starts inside it
        return None
    raise ConfigError(
        f"--ranks {num_ranks}: torchrun or srun has started {rank_env.world_size} ranks; leave --ranks out to join them"
    )


def _torchrun_environment(environment: Mapping[str, str]) -> RankEnvironment | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names):
        return None
    rank, world_size, local_rank, host, port = (environment[name] for name in names)
    return RankEnvironment(
        rank=int(rank),
        world_size=int(world_size),
        local_rank=int(local_rank),
        master_address=host,
        master_port=int(port),
    )


def _slurm_environment(environment: Mapping[str, str]) -> RankEnvironment | None:
    if "SLURM_STEP_ID" not in environment:  # a batch script outside srun has SLURM_PROCID too, but is no rank
        return None
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    restart = int(environment.get("SLURM_RESTART_COUNT", 0))  # a rank left over by an earlier one may still listen
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    return RankEnvironment(
        rank=int(environment["SLURM_PROCID"]),
        world_size=int(environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        master_address=_first_host(nodes),
        master_port=SLURM_FIRST_PORT + (job * 31 + step + restart * 1009) % SLURM_NUM_PORTS,
    )


def _first_host(nodes: str) -> str:
    if not set("[,") & set(nodes):
        return nodes
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]
