"""Training on one rank, with the real engine in fp32, against plain torch on the CPU; what a closed phase keeps."""

import gc

import torch

from benchmarks.gpu_check.measuring import device_of
from benchmarks.gpu_check.plain_training import (
    DIMENSIONS,
    RATES,
    SEQ_LEN,
    TINY,
    WEIGHTS_TOLERANCE,
    compare,
    step_sequences,
    train_config,
    train_plainly,
    trained_of,
)
from benchmarks.gpu_check.report import Report
from benchmarks.stages import close_stage, open_stage, single_rank
from ufork.parallel.engine.stage_modules import collected_shapes
from ufork.parallel.transport.stage_world import World, join_world
from ufork.train.step import run_step

STEPS = 10
NUM_PHASES = 3
MOST_KEPT_SHARE = 0.1
"""Bytes that each further phase may leave behind, as a share of what a phase holds."""


def run(report: Report, *, cpu: bool) -> None:
    """Fails if losses, norms or weights differ from the CPU's, or if closed phases keep their memory."""
    device_of(cpu=cpu)
    with join_world(single_rank(), timeout_seconds=30) as world:
        report.check("device", world.device.type == ("cpu" if cpu else "cuda"), f"trains on {world.device}")
        for optimizer in RATES:
            expected = train_plainly(train_config(optimizer), steps=STEPS)
            stage = open_stage(world, TINY, DIMENSIONS, train_config(optimizer), seq_len=SEQ_LEN, name=optimizer)
            results = [run_step(stage, step_sequences(), RATES[optimizer]) for _ in range(STEPS)]
            weights = stage.whole_weights(collected_shapes(TINY, DIMENSIONS, stage.layout))
            close_stage(stage)
            compare(
                report,
                optimizer,
                trained_of(results, weights),
                expected,
                weights_tolerance=WEIGHTS_TOLERANCE[optimizer],
            )
            del stage
        _phases(report, world)


def _phases(report: Report, world: World) -> None:
    """Opens, trains and closes phases in one process, and reports the bytes of tensors that stay."""
    left, held = [_tensor_bytes(world.device)], 0
    for number in range(NUM_PHASES):
        stage = open_stage(world, TINY, DIMENSIONS, train_config("adamw"), seq_len=SEQ_LEN, name=f"phase {number}")
        run_step(stage, step_sequences(), RATES["adamw"])
        held = max(held, _tensor_bytes(world.device) - left[-1])
        close_stage(stage)
        del stage
        left.append(_tensor_bytes(world.device))
    added = max(after - before for before, after in zip(left[1:], left[2:], strict=False))
    report.figure("phases", {"bytes_held": held, "bytes_left": left})
    report.check("closed phases", added < MOST_KEPT_SHARE * held, f"each leaves {added:,} of {held:,} bytes behind")
    report.headline(f"a closed phase keeps {added / held:.0%}")


def _tensor_bytes(device: torch.device) -> int:
    """Returns the bytes of tensors on the device; on a CPU, of the tensors that Python knows."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and not thing.is_meta]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
