"""What a checkpoint costs a run: `python -m benchmarks.checkpoint`.

One rank trains; saves are taken with training waiting for them, and in the background. The stall of the latter is what
some steps take longer with a save than without, in turns, by their medians: with training on every core, and with one
core left over, as a machine with GPUs has many. Hooks it, what the disk itself does with as many bytes.

The last line is one JSON object: the stall as a share of a save that is waited for, both ways, and MB/s of saving, of
loading and of the disk.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import prepare_environment, process_context
from ufork.checkpoint.config import CheckpointConfig
from ufork.data.stream_state import StreamState
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.planning.workload import Workload
from ufork.train.config import GlobalBatchSize, TrainConfig
from ufork.vocabulary import PackedSequence, Task

MODEL = ModelConfig(
    hidden_size=512,
    intermediate_size=1536,
    num_attention_heads=8,
    num_key_value_heads=8,
    trunk_layers=8,
    understanding_layers=4,
    generation_layers=4,
    rq_head=RqHeadConfig(hidden_size=512, attention_size=512, num_attention_heads=8, num_blocks=1, dropout=0.0),
)
DIMENSIONS = Dimensions(vocab_size=8192, codebook_size=512, code_width=64, codes_per_position=4)
SEQ_LEN = 256
STEPS, REPEATS = 4, 7


def main() -> None:
    """Measures on one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one unless given")
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (figures,) = start_local_ranks(_run_rank, 1, Path(folder), context=process_context())
    print(json.dumps(figures))


def _run_rank(rank_env: RankEnvironment, folder: Path) -> dict[str, float]:
    import torch

    from benchmarks.stages import open_stage
    from ufork.checkpoint.folder import CheckpointFolder, TrainState
    from ufork.checkpoint.resume import resume
    from ufork.checkpoint.saver import Saver
    from ufork.parallel.transport.stage_world import join_world
    from ufork.train.step import run_step

    config = TrainConfig(precision="auto", global_batch_size=GlobalBatchSize(understanding=0, generation=1))
    with join_world(rank_env, timeout_seconds=120) as world:
        stage = open_stage(world, MODEL, DIMENSIONS, config, seq_len=SEQ_LEN)
        sequence = _sequence()

        checkpoints = CheckpointFolder(folder)
        checkpoints.take()
        saver = Saver(
            stage.engine.shards,
            stage.bridge,
            stage.world.coordinate,
            checkpoints,
            CheckpointConfig(),
            facts={"fixed": {}, "layout": "", "versions": {}},
            start=TrainState(),
        )
        numbers = itertools.count(1)
        stream: Any = _NoStream()

        def steps() -> None:
            for _ in range(STEPS):
                run_step(stage, {Task.GENERATION: [sequence]}, 1e-4, before_update=saver.before_update)
                saver.poll()

        def save() -> None:
            saver.save(TrainState(step=next(numbers)), stream)

        def with_a_save() -> None:
            save()
            steps()
            saver.finish()

        def waited_for() -> None:
            save()
            saver.finish()

        waited_for()  # its image takes memory, and keeps it
        steps()
        waited, stall = {}, {}
        all_cores = torch.get_num_threads()
        for threads in sorted({max(all_cores - 1, 1), all_cores}):
            torch.set_num_threads(threads)
            waited[threads] = statistics.median(_seconds(waited_for) for _ in range(3))
            quiet, saving = zip(*((_seconds(steps), _seconds(with_a_save)) for _ in range(REPEATS)), strict=True)
            stall[threads] = statistics.median(saving) - statistics.median(quiet)
        newest = checkpoints.at(checkpoints.steps()[-1])
        num_bytes = sum(file.stat().st_size for file in newest.rglob("*"))
        loading = _seconds(lambda: resume(stage.engine.shards, None, newest))
        writing = _seconds(lambda: _write_through(folder / "plain", num_bytes))
        return {
            "stall_share": round(stall[all_cores] / waited[all_cores], 4),
            "stall_s": round(stall[all_cores], 4),
            "stall_share_with_a_core_free": round(stall[min(stall)] / waited[min(stall)], 4),
            "save_mb_per_s": round(num_bytes / waited[all_cores] / 1e6, 1),
            "load_mb_per_s": round(num_bytes / loading / 1e6, 1),
            "disk_write_mb_per_s": round(num_bytes / writing / 1e6, 1),
            "checkpoint_mb": round(num_bytes / 1e6, 1),
        }


class _NoStream:
    """Where a stream stands that has nothing to read."""

    def state(self) -> StreamState:
        """As `TrainingStream.state`."""
        return StreamState(seed=0, num_lanes=1, step=0, first_sequence={}, sources={}, taken={})


def _sequence() -> PackedSequence:
    workload = Workload(
        model=MODEL,
        dimensions=DIMENSIONS,
        global_batch_size={Task.GENERATION: 1},
        seq_len=SEQ_LEN,
        precision="bf16",
        recompute=False,
    )
    return workload.sequence(Task.GENERATION)


def _write_through(path: Path, num_bytes: int) -> None:
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 20) * (num_bytes >> 20))
        file.flush()
        os.fsync(file.fileno())


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
