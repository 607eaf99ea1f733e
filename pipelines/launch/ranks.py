"""Finds or starts the ranks of a job.

    environment -> this process's rank, where torchrun or srun started it as one rank
                -> otherwise N processes of this machine (N = 1: this process itself)

Only this module reads the launcher's variables; a rank gets a RankEnvironment.
"""

import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Mapping, MutableMapping
from multiprocessing import util
from multiprocessing.context import BaseContext
from typing import Any

from pipelines.cgroups import usable_cores
from pipelines.launch.local_ranks import free_port, start_local_ranks
from ufork.errors import ConfigError
from ufork.parallel.nvidia_devices import uses_cuda
from ufork.parallel.rank_environment import SECRET_VARIABLE, RankEnvironment

SLURM_FIRST_PORT, SLURM_NUM_PORTS = 15_000, 15_000
"""Range of ports below those that Linux assigns to outgoing connections (from 32768)."""
LONGEST_SOCKET_FOLDER = 72
"""Bytes of a temporary folder's path to which multiprocessing's `/pymp-XXXXXXXX/listener-XXXXXXXX` can be added."""
PRELOADED_MODULES = (
    "torch",
    "torch._dynamo",
    "deepspeed",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
)
"""Modules imported once, by the server that this machine's ranks are forked from: ranks then start in 1.3 s instead of
more than 20 s. The last five are what `deepspeed.initialize` imports, which takes seconds on each rank."""
CUDA_QUEUES = "32"
"""Hardware queues of a CUDA device (CUDA_DEVICE_MAX_CONNECTIONS, 8 by default, at most 32).

Every pair of ranks, every group and ZeRO's gathers have a stream of their own. Streams that share a queue wait for
each other, so with few queues a transfer that waits for its peer holds up gathers that could run. megatron-core
recommends 1, which makes a collective start before the product that it overlaps with; it needs that for speed only.
"""


_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which Open MPI, MVAPICH and others, as well as srun, give the number of processes that they started."""
_TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run_ranks(function: Callable[..., Any], num_ranks: int | None, *args: Any) -> None:
    """Calls `function(rank_env, *args)` on every rank of the job that this process belongs to, or of one started here.

    Args:
        function: importable by name in a new process; `args` are sent by pickle.
        num_ranks: ranks of the job; None for as many as torchrun or srun started, or one.
        args: passed to every rank after its RankEnvironment.

    Raises:
        ConfigError: `num_ranks` is not the number that torchrun or srun started.
        RankFailedError: a rank of this machine failed; all others have been killed.
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
    """Sets variables that torch and DeepSpeed read when they are imported, unless the user has set them.

    DeepSpeed uses the CPU only if DS_ACCELERATOR says so; several ranks on one machine share its cores. CUDA reads the
    number of its queues when it is first used, which DeepSpeed does when it is imported.
    """
    if uses_cuda(environment):
        environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", CUDA_QUEUES)
    else:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    cores = usable_cores()
    if num_local_ranks > 1 or cores < len(os.sched_getaffinity(0)):  # torch does not know a container's quota
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_local_ranks)))


def process_context(preloaded_modules: tuple[str, ...] = PRELOADED_MODULES) -> BaseContext:
    """Returns how processes are started here: forked from a warm server, or fresh where they use CUDA."""
    if uses_cuda(os.environ):
        return multiprocessing.get_context("spawn")
    _choose_socket_folder()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded_modules))
    return context


def _choose_socket_folder() -> None:
    """Makes the fork server's socket in /tmp where TMPDIR is longer than the path of a socket may be (108 bytes)."""
    default = tempfile.gettempdir()
    if len(os.fsencode(default)) > LONGEST_SOCKET_FOLDER:
        tempfile.tempdir = "/tmp"
        util.get_temp_dir()  # multiprocessing keeps the folder, and removes it at exit
        tempfile.tempdir = default


def joined_environment(environment: Mapping[str, str], num_ranks: int | None) -> RankEnvironment | None:
    """The rank that torchrun or srun made this process; None where neither started it as one of several.

    Variables that are empty count as missing.

    Raises:
        ConfigError: they started another number of ranks than `num_ranks`, or set variables that make no rank.
    """
    given = {name: value for name, value in environment.items() if value}
    rank_env = _torchrun_environment(given)
    if rank_env is None:
        rank_env = _slurm_environment(given)
        _refuse_mpi(given, rank_env.world_size if rank_env else 1)
    if rank_env is None:
        _refuse_incomplete_torchrun(given)
    if rank_env is None or num_ranks in (None, rank_env.world_size):
        return rank_env
    if rank_env.world_size == 1:  # an interactive shell of one task: the ranks start inside it
        return None
    raise ConfigError(
        f"--ranks {num_ranks}: torchrun or srun has started {rank_env.world_size} ranks; omit --ranks to join them"
    )


def _torchrun_environment(given: Mapping[str, str]) -> RankEnvironment | None:
    if not given.keys() >= set(_TORCHRUN_NAMES):
        return None
    return _rank_environment(
        rank=_number(given, "RANK"),
        world_size=_number(given, "WORLD_SIZE"),
        local_rank=_number(given, "LOCAL_RANK"),
        master_address=given["MASTER_ADDR"],
        master_port=_number(given, "MASTER_PORT"),
        launcher_serves_store=given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        secret=given.get(SECRET_VARIABLE, ""),
    )


def _refuse_incomplete_torchrun(given: Mapping[str, str]) -> None:
    """Several processes that each trained alone would write into one run folder."""
    is_rank = "RANK" in given or "LOCAL_RANK" in given
    if is_rank and given.get("WORLD_SIZE") != "1":  # some clusters set it for a job of one node without torchrun
        missing = [name for name in _TORCHRUN_NAMES if name not in given]
        raise ConfigError(
            f"{', '.join(missing)}: missing or empty, while other variables of torchrun are set; start the job by"
            " torchrun, or unset RANK and LOCAL_RANK"
        )


def _slurm_environment(given: Mapping[str, str]) -> RankEnvironment | None:
    if "SLURM_STEP_ID" not in given:  # a batch script outside srun has SLURM_PROCID, too, but is no rank
        return None
    job, step = _number(given, "SLURM_JOB_ID"), _number(given, "SLURM_STEP_ID")
    restart = _number({"SLURM_RESTART_COUNT": "0", **given}, "SLURM_RESTART_COUNT")  # an earlier rank may still listen
    return _rank_environment(
        rank=_number(given, "SLURM_PROCID"),
        world_size=_number(given, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank=_number(given, "SLURM_LOCALID"),
        master_address=_first_host(_value(given, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")),
        master_port=SLURM_FIRST_PORT + (job * 31 + step + restart * 1009) % SLURM_NUM_PORTS,
        secret=given.get(SECRET_VARIABLE, ""),
    )


def _refuse_mpi(given: Mapping[str, str], world_size: int) -> None:
    """Ranks of mpirun would each train alone, or share a rank of the step of srun that started mpirun's daemons."""
    for name in _MPI_SIZES:
        if given.get(name, "1") not in ("1", str(world_size)):
            raise ConfigError(
                f"{name}={given[name]}: mpirun has started this process as one of several, and ufork joins those of"
                " torchrun and srun only; start it by one of these, or by `ufork train --ranks N`"
            )


def _rank_environment(**values: Any) -> RankEnvironment:
    if not 0 <= values["local_rank"] <= values["rank"] < values["world_size"]:
        raise ConfigError(
            "torchrun or srun: expected 0 <= local rank <= rank < number of ranks, found"
            f" {values['local_rank']}, {values['rank']}, {values['world_size']}; start the job by only one of them"
        )
    if not 0 < values["master_port"] < 2**16:
        raise ConfigError(f"MASTER_PORT={values['master_port']}: expected a port from 1 to 65535")
    return RankEnvironment(**values)


def _value(given: Mapping[str, str], *names: str) -> str:
    """The first of the variables `names` that is set."""
    for name in names:
        if name in given:
            return given[name]
    raise ConfigError(
        f"{' and '.join(names)}: missing or empty, while SLURM_STEP_ID={given['SLURM_STEP_ID']}; export all variables"
        " of srun (into a container, too), or unset SLURM_STEP_ID to start without srun"
    )


def _number(given: Mapping[str, str], *names: str) -> int:
    text = _value(given, *names)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ConfigError(f"{' or '.join(names)}: expected a whole number from torchrun or srun, found {text!r}")
    return int(text)


def _first_host(nodes: str) -> str:
    """First host of Slurm's list of nodes, as `scontrol show hostnames` expands it, which a container may lack.

    Names are separated by commas, and `[001-003,7]` in a name stands for numbers; the first is written out in full.
    """
    host = re.sub(r"\[(\d+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])
    if not re.fullmatch(r"[\w.-]+", host):
        raise ConfigError(f"SLURM_STEP_NODELIST or SLURM_JOB_NODELIST: expected a list of nodes, found {nodes!r}")
    return host
