"""Forked layouts, each rank a process, three steps each against plain torch on the CPU.

With fewer GPUs than ranks, all ranks share the first one. NCCL refuses two ranks of one host on one GPU; here each rank
claims to be a host of its own, so that they connect over sockets: NCCL's real rules, at meaningless speed.
"""

import os
from dataclasses import replace
from typing import Any

from benchmarks.gpu_check.report import Report
from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import process_context
from ufork.errors import UforkError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.parallel.layout import num_ranks_of
from ufork.parallel.rank_environment import RankEnvironment

LAYOUTS = {
    "one rank a stage": LayoutConfig(kind="forked"),
    "trunk tp 2": LayoutConfig(kind="forked", trunk=StageShape(tp=2)),
    "trunk dp 2": LayoutConfig(kind="forked", trunk=StageShape(dp=2)),
}
STEPS = 3
STEP_SECONDS = 25.0
"""Limit of a layout's ranks once they have started; a rank also waits no longer than this for another."""
START_SECONDS = {False: 20.0, True: 60.0}
"""Time in which the processes of a layout start and import what they need; longer with `--cpu`, on busy machines."""
SMOKE_SECONDS = 10.0


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a layout hangs, raises, or trains anything else than one process."""
    from benchmarks.gpu_check.plain_training import compare, train_config, train_plainly

    if not cpu and (trouble := _trouble_of_smoke()):
        report.skip("layouts", f"an all-reduce of two ranks does not work here: {trouble}")
        report.check("all-reduce of two ranks", False, trouble)
        return
    expected = train_plainly(train_config("sgd"), steps=STEPS)
    for name, layout in LAYOUTS.items():
        limit = min(STEP_SECONDS + START_SECONDS[cpu], report.seconds_left - 5.0)
        try:
            by_rank = start_local_ranks(
                _train, num_ranks_of(layout), layout, cpu, context=process_context(), timeout_seconds=limit
            )
        except UforkError as error:
            report.check(name, False, str(error))
            continue
        trained, facts = by_rank[0]
        report.figure(name, facts)
        report.check(f"{name}, device", facts["device"].startswith("cpu" if cpu else "cuda"), f"is {facts['device']}")
        compare(report, name, trained, expected)
        if not cpu and layout.trunk.tp > 1:
            report.check(f"{name}, sequence parallelism", facts["sequence_parallel"], "is off")
        report.headline(name)


def _train(rank_env: RankEnvironment, layout: LayoutConfig, cpu: bool) -> tuple[Any, dict[str, Any]]:
    """Runs on each rank; returns the whole model's training on the leader."""
    rank_env = _share_gpu(rank_env, cpu=cpu)

    from benchmarks.gpu_check.measuring import device_of
    from benchmarks.gpu_check.plain_training import (
        DIMENSIONS,
        RATES,
        SEQ_LEN,
        TINY,
        step_sequences,
        train_config,
        trained_of,
    )
    from benchmarks.stages import close_stage, open_stage
    from ufork.parallel.engine.stage_modules import collected_shapes
    from ufork.parallel.transport.stage_world import join_world
    from ufork.train.build_stage import uses_sequence_parallel
    from ufork.train.step import run_step

    device_of(cpu=cpu)
    config = train_config("sgd", kernels="torch")  # every rank would compile others, which takes longer than the steps
    with join_world(rank_env, layout, timeout_seconds=STEP_SECONDS) as world:
        stage = open_stage(world, TINY, DIMENSIONS, config, seq_len=SEQ_LEN, layout=layout)
        numbers = stage.layout.num_micro_batches(world.coordinate.stage)
        own = {}
        if stage.reads_data:
            every, replicas = step_sequences(), world.dp_group.size()
            own = {task: every[task][world.coordinate.dp_rank :: replicas] for task in numbers}
        results = [run_step(stage, own, RATES["sgd"]) for _ in range(STEPS)]
        weights = stage.whole_weights(collected_shapes(TINY, DIMENSIONS, stage.layout))
        facts = {"device": str(world.device), "sequence_parallel": uses_sequence_parallel(layout, world)}
        close_stage(stage)
        return trained_of(results, weights), facts


def _share_gpu(rank_env: RankEnvironment, *, cpu: bool) -> RankEnvironment:
    """Returns the rank on a GPU that exists; sets what NCCL reads if ranks share it."""
    if cpu:
        return rank_env
    import torch

    if torch.cuda.device_count() >= rank_env.world_size:
        return rank_env
    os.environ.update(
        NCCL_HOSTID=f"gpu-check-{rank_env.rank}",
        NCCL_SOCKET_IFNAME="lo",
        NCCL_P2P_DISABLE="1",
        NCCL_SHM_DISABLE="1",
        NCCL_IB_DISABLE="1",
    )
    return replace(rank_env, local_rank=0)


def _trouble_of_smoke() -> str:
    """Returns why two ranks cannot sum a number over NCCL; empty if they can."""
    try:
        sums = start_local_ranks(
            _sum_of_ranks, 2, context=process_context(), timeout_seconds=SMOKE_SECONDS + START_SECONDS[False]
        )
    except UforkError as error:
        return str(error)
    return "" if sums == [1.0, 1.0] else f"the sum of 0 and 1 is {sums}"


def _sum_of_ranks(rank_env: RankEnvironment) -> float:
    rank_env = _share_gpu(rank_env, cpu=False)
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank_env.local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl",
        init_method=f"tcp://{rank_env.master_address}:{rank_env.master_port}",
        rank=rank_env.rank,
        world_size=rank_env.world_size,
        timeout=timedelta(seconds=SMOKE_SECONDS),
    )
    number = torch.full((1,), float(rank_env.rank), device=device)
    dist.all_reduce(number)
    return float(number)
