"""Measures what a checkpoint costs a run: `python -m benchmarks.checkpoint`.

One rank trains; some saves block training, others run in the background. The stall of a background save is the extra
time that the same number of steps takes with a save (medians of alternating measurements): once with training on every
core, and once with one core free, as on a machine with GPUs. On a CUDA device, which the steps are measured to the end
of, all cores are free. For comparison, the disk's own speed is measured with as many bytes.

The last line is one JSON object: the stall as a share of a blocking save, both ways, the seconds of a step without and
with a save, and MB/s of saving, of loading and of the disk.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import prepare_environment, process_context
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.text_tokenizer import TextTokenizer
from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.nvidia_devices import uses_cuda
from ufork.parallel.rank_environment import RankEnvironment
from ufork.run_folder import RunFolder
from ufork.train.config import GlobalBatchSize, TrainConfig, WandbConfig

if TYPE_CHECKING:
    from ufork.train.session import Phase, Session

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
SMALLEST_SHARE = 0.5
"""Spread of the steps' seconds, as a share of a save, from which on the stall is noise."""


def main() -> None:
    """Measures on one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="(default: cuda where there is one)")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif arguments.device == "cuda" and not uses_cuda(os.environ):
        parser.error("--device cuda: this machine has no NVIDIA device, or the environment hides it; give --device cpu")
    prepare_environment(os.environ, num_local_ranks=1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (figures,) = start_local_ranks(_run_rank, 1, Path(folder), context=process_context())
    print(json.dumps(figures))


class SavingSteps:
    """Steps of an open session on one step's packed sequences, with or without a save meanwhile."""

    def __init__(self, session: "Session", *, num_steps: int):
        """Reads a step's packed sequences from the session's stream."""
        assert session.stream and session.saver
        self.session, self.saver, self.stream, self.num_steps = session, session.saver, session.stream, num_steps
        self._sequences = session.stream.next_step()
        self._numbers = itertools.count(session.start.step + 1)

    def steps(self) -> None:
        """Trains, and waits for the device."""
        import torch

        from ufork.train.step import run_step

        for _ in range(self.num_steps):
            run_step(self.session.stage, self._sequences, 1e-4, before_update=self.saver.before_update)
            self.saver.poll()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def save(self) -> None:
        """Starts a save."""
        from ufork.checkpoint.state import TrainState

        self.saver.save(TrainState(step=next(self._numbers)), self.stream)

    def save_and_steps(self) -> float:
        """Starts a save, trains meanwhile and finishes it; returns the seconds until the steps were done."""
        seconds = _seconds(lambda: (self.save(), self.steps()))
        self.saver.finish()
        return seconds

    def blocking_save(self) -> None:
        """Saves while nothing else runs."""
        self.save()
        self.saver.finish()


@dataclass(frozen=True, kw_only=True)
class Stall:
    """What a save in the background costs."""

    blocking_seconds: float
    """Time of a save while nothing else runs."""
    step_seconds: float
    """Mean time of the steps without a save."""
    saving_step_seconds: float
    """Mean time of as many steps during which a save runs."""
    num_steps: int
    spread_seconds: float
    """By how much equal measurements of the steps differ: a stall below it is not measurable."""

    @property
    def stall_seconds(self) -> float:
        """Extra time of the steps during which a save runs."""
        return (self.saving_step_seconds - self.step_seconds) * self.num_steps

    @property
    def share(self) -> float:
        """The stall, of a blocking save."""
        return self.stall_seconds / self.blocking_seconds

    @property
    def is_measurable(self) -> bool:
        """Whether a save takes long enough for its share to mean something."""
        return self.spread_seconds < SMALLEST_SHARE * self.blocking_seconds


def measure_stall(saving: SavingSteps, *, repeats: int, blocking_repeats: int = 3) -> Stall:
    """Returns medians of alternating measurements; the first save of the session must have been made before."""
    blocking = statistics.median(_seconds(saving.blocking_save) for _ in range(blocking_repeats))
    quiet, busy = zip(*((_seconds(saving.steps), saving.save_and_steps()) for _ in range(repeats)), strict=True)
    return Stall(
        blocking_seconds=blocking,
        step_seconds=statistics.median(quiet) / saving.num_steps,
        saving_step_seconds=statistics.median(busy) / saving.num_steps,
        num_steps=saving.num_steps,
        spread_seconds=max(max(each) - min(each) for each in (quiet, busy)),
    )


def _run_rank(rank_env: RankEnvironment, folder: Path) -> dict[str, float | str]:
    import torch

    from benchmarks.random_source import write_random_source
    from ufork.checkpoint.resume import resume
    from ufork.parallel.transport.stage_world import join_world
    from ufork.train.session import open_session

    write_random_source(folder / "random", DIMENSIONS)
    with join_world(rank_env, timeout_seconds=120) as world, open_session(_phase(folder), world) as session:
        saving = SavingSteps(session, num_steps=STEPS)
        saving.blocking_save()  # allocates the memory that later saves use again
        saving.steps()
        all_cores = torch.get_num_threads()
        stalls = {}
        on_cpu = world.device.type == "cpu"
        for threads in sorted({max(all_cores - 1, 1), all_cores} if on_cpu else {all_cores}):
            torch.set_num_threads(threads)
            stalls[threads] = measure_stall(saving, repeats=REPEATS)
        newest = saving.saver.folder.at(saving.saver.folder.steps()[-1])
        num_bytes = sum(file.stat().st_size for file in newest.rglob("*"))
        loading = _seconds(lambda: resume(session.stage.engine.shards, None, newest))
        writing = _seconds(lambda: _write_through(folder / "plain", num_bytes))
        return {
            "device": world.device.type,
            "step_s": round(stalls[all_cores].step_seconds, 4),
            "step_s_while_saving": round(stalls[all_cores].saving_step_seconds, 4),
            "stall_share": round(stalls[all_cores].share, 4),
            "stall_s": round(stalls[all_cores].stall_seconds, 4),
            "stall_share_with_a_core_free": round(stalls[min(stalls)].share, 4),
            "save_mb_per_s": round(num_bytes / stalls[all_cores].blocking_seconds / 1e6, 1),
            "load_mb_per_s": round(num_bytes / loading / 1e6, 1),
            "disk_write_mb_per_s": round(num_bytes / writing / 1e6, 1),
            "checkpoint_mb": round(num_bytes / 1e6, 1),
        }


def _phase(folder: Path) -> "Phase":
    """Returns one packed sequence of generation per step, read from the random codes in `folder`."""
    from benchmarks.random_source import PROMPT
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
