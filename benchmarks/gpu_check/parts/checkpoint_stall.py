"""What a checkpoint in the background costs training: the extra time of steps during which one is saved."""

import tempfile
from pathlib import Path

from benchmarks.checkpoint import SavingSteps, Stall, measure_stall
from benchmarks.gpu_check.measuring import GB, device_of
from benchmarks.gpu_check.plain_training import DIMENSIONS, TINY, train_config
from benchmarks.gpu_check.released_model import released_sizes
from benchmarks.gpu_check.report import Report
from benchmarks.random_source import PROMPT, write_random_source
from benchmarks.stages import initial_model, single_rank
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.text_tokenizer import TextTokenizer
from ufork.model.config import ModelConfig, RqHeadConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.transport.stage_world import join_world
from ufork.run_folder import RunFolder
from ufork.train.config import GlobalBatchSize
from ufork.train.session import Phase, open_session

MODEL = ModelConfig(trunk_layers=4, understanding_layers=2, generation_layers=2, rq_head=RqHeadConfig(num_blocks=2))
"""A quarter of the released size's weights, so that a save takes seconds; the widths are its own."""
MODEL_DIMENSIONS = released_sizes(cpu=False).dimensions.model_copy(update={"vocab_size": 32_768})
SEQ_LEN, CPU_SEQ_LEN = 4096, 128
NUM_STEPS, REPEATS = 12, 2
GOAL_SHARE = 0.05


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a save fails; the stall is a goal."""
    device_of(cpu=cpu)
    with tempfile.TemporaryDirectory() as name, join_world(single_rank(), timeout_seconds=60) as world:
        folder = Path(name)
        write_random_source(folder / "random", DIMENSIONS if cpu else MODEL_DIMENSIONS)
        with open_session(_phase(folder, cpu=cpu), world) as session:
            saving = SavingSteps(session, num_steps=NUM_STEPS)
            saving.steps()
            saving.blocking_save()  # allocates the memory that later saves use again
            stall = measure_stall(saving, repeats=REPEATS, blocking_repeats=1)
            newest = saving.saver.folder.at(saving.saver.folder.steps()[-1])
            num_bytes = sum(file.stat().st_size for file in newest.rglob("*"))
        report_stall(report, stall, num_bytes, cpu=cpu)


def report_stall(report: Report, stall: Stall, num_bytes: int, *, cpu: bool) -> None:
    """Reports the stall; not as a share of a save that is shorter than steps of equal work differ."""
    figures = {
        "checkpoint_gb": round(num_bytes / GB, 3),
        "blocking_seconds": round(stall.blocking_seconds, 4),
        "stall_seconds": round(stall.stall_seconds, 4),
        "spread_seconds": round(stall.spread_seconds, 4),
    }
    save = f"a save of {num_bytes / 1e6:,.0f} MB in {stall.blocking_seconds:.2f} s"
    if not stall.is_measurable:
        report.figure("stall", figures)
        report.skip("stall", f"{save} is too short: equal steps differ by {stall.spread_seconds:.2f} s")
        report.headline(f"{save}, too short to measure a stall")
        return
    report.figure("stall", figures | {"stall_share": round(stall.share, 4)})
    if not cpu:
        report.goal("stall", stall.share, f"at most {GOAL_SHARE} of a save", met=stall.share <= GOAL_SHARE)
    report.headline(f"{stall.share:.1%} of {save}")


def _phase(folder: Path, *, cpu: bool) -> Phase:
    """Returns one packed sequence of generation per step, read from the random codes in `folder`."""
    sequences = GlobalBatchSize(understanding=0, generation=1)
    train = train_config("adamw").model_copy(
        update={"global_batch_size": sequences, "precision": "fp32" if cpu else "auto", "learning_rate": 1e-4}
    )
    return Phase(
        name="stall",
        initial=initial_model(TINY, DIMENSIONS) if cpu else initial_model(MODEL, MODEL_DIMENSIONS),
        train=train,
        data=DataConfig(generation=(SourceConfig(folder="random"),), seq_len=CPU_SEQ_LEN if cpu else SEQ_LEN),
        layout=LayoutConfig(),
        tokenizer=TextTokenizer.train([PROMPT], vocab_size=DIMENSIONS.vocab_size),
        run=RunFolder(folder),
    )
