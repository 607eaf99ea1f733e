"""Measures what a checkpoint costs a run: `python -m benchmarks.checkpoint`.

One rank trains; some saves block training, others run in the background. The stall of a background save is the extra
time that the same number of steps takes with a save (medians of alternating measurements): once with training on every
core, and once with one core free, as on a machine with GPUs. For comparison, the disk's own speed is measured with as
many bytes.

The last line is one JSON object: the stall as a share of a blocking save, both ways, and MB/s of saving, of loading and
of the disk.
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
from typing import TYPE_CHECKING, Any

from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import prepare_environment, process_context
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.text_tokenizer import TextTokenizer
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.rank_environment import RankEnvironment
from ufork.run_folder import RunFolder
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig
from ufork.vocabulary import Task

if TYPE_CHECKING:
    from ufork.train.session import Phase

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
PROMPT = "a red dog left of two yellow buses"
STEPS, REPEATS = 4, 7


def main() -> None:
    """Measures on one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    arguments = parser.parse_args()
    prepare_environment(os.environ, num_local_ranks=1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (figures,) = start_local_ranks(_run_rank, 1, Path(folder), context=process_context())
    print(json.dumps(figures))


def _run_rank(rank_env: RankEnvironment, folder: Path) -> dict[str, float]:
    import torch

    from ufork.checkpoint.resume import resume
    from ufork.checkpoint.state import TrainState
    from ufork.parallel.transport.stage_world import join_world
    from ufork.train.session import open_session
    from ufork.train.step import run_step

    _write_source(folder / "random")
    with join_world(rank_env, timeout_seconds=120) as world, open_session(_phase(folder), world) as session:
        stage, stream, saver = session.stage, session.stream, session.saver
        assert stream and saver
        sequences = stream.next_step()
        numbers = itertools.count(1)

        def steps() -> None:
            for _ in range(STEPS):
                run_step(stage, sequences, 1e-4, before_update=saver.before_update)
                saver.poll()

        def save() -> None:
            saver.save(TrainState(step=next(numbers)), stream)

        def with_a_save() -> None:
            save()
            steps()
            saver.finish()

        def blocking() -> None:
            save()
            saver.finish()

        blocking()  # allocates the memory that later saves use again
        steps()
        blocked, stall = {}, {}
        all_cores = torch.get_num_threads()
        for threads in sorted({max(all_cores - 1, 1), all_cores}):
            torch.set_num_threads(threads)
            blocked[threads] = statistics.median(_seconds(blocking) for _ in range(3))
            quiet, saving = zip(*((_seconds(steps), _seconds(with_a_save)) for _ in range(REPEATS)), strict=True)
            stall[threads] = statistics.median(saving) - statistics.median(quiet)
        newest = saver.folder.at(saver.folder.steps()[-1])
        num_bytes = sum(file.stat().st_size for file in newest.rglob("*"))
        loading = _seconds(lambda: resume(stage.engine.shards, None, newest))
        writing = _seconds(lambda: _write_through(folder / "plain", num_bytes))
        return {
            "stall_share": round(stall[all_cores] / blocked[all_cores], 4),
            "stall_s": round(stall[all_cores], 4),
            "stall_share_with_a_core_free": round(stall[min(stall)] / blocked[min(stall)], 4),
            "save_mb_per_s": round(num_bytes / blocked[all_cores] / 1e6, 1),
            "load_mb_per_s": round(num_bytes / loading / 1e6, 1),
            "disk_write_mb_per_s": round(num_bytes / writing / 1e6, 1),
            "checkpoint_mb": round(num_bytes / 1e6, 1),
        }


def _phase(folder: Path) -> "Phase":
    """Returns one packed sequence of generation per step, read from the random codes in `folder`."""
    from benchmarks.stages import initial_model
    from ufork.train.session import Phase

    return Phase(
        name="benchmark",
        initial=initial_model(MODEL, DIMENSIONS),
        train=TrainConfig(
            global_batch_size=GlobalBatchSize(understanding=0, generation=1), wandb=WandbConfig(mode="disabled")
        ),
        data=DataConfig(generation=(SourceConfig(folder="random"),), seq_len=SEQ_LEN),
        layout=LayoutConfig(),
        tokenizer=TextTokenizer.train([PROMPT], vocab_size=512),
        run=RunFolder(folder),
    )


def _write_source(folder: Path) -> None:
    """Writes a source of random codes."""
    import numpy as np

    from ufork.data.shards.sample import Sample
    from ufork.data.shards.writer import ShardWriter, finish_source, start_source

    start_source(folder)
    shape, random = (8, 8, DIMENSIONS.codes_per_position), np.random.default_rng(0)
    with ShardWriter(folder, source="random", split="train", task=Task.GENERATION, shard_samples=100) as writer:
        for number in range(100):
            codes = random.integers(0, DIMENSIONS.codebook_size, shape, dtype=np.uint16)
            names = {"id": str(number), "source": "random", "licence": "CC0-1.0"}
            writer.write(Sample(task=Task.GENERATION, prompt=PROMPT, codes=codes, **names))
    described: dict[str, Any] = {"licence": "CC0-1.0", "attribution": "", "recipe": "", "details": {}, "skipped": {}}
    finish_source(folder, source="random", split="train", entries=writer.entries, **described)


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
