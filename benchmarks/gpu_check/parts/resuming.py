"""A checkpoint that is saved while a step runs, restored in a new session, and trained on.

What is restored has to be what was saved, bit for bit. So do the steps after it, on a device whose kernels sum in the
same order every time; elsewhere they are equal up to rounding.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_check.measuring import device_of, largest_error
from benchmarks.gpu_check.plain_training import DIMENSIONS, RATES, ROUNDING_ONLY, SEQ_LEN, TINY, train_config
from benchmarks.gpu_check.report import Report
from benchmarks.random_source import PROMPT, write_random_source
from benchmarks.stages import initial_model, single_rank
from ufork.checkpoint.state import TrainState
from ufork.data.config import DataConfig, SourceConfig
from ufork.data.text_tokenizer import TextTokenizer
from ufork.parallel.config import LayoutConfig
from ufork.parallel.transport.stage_world import World, join_world
from ufork.run_folder import RunFolder
from ufork.train.config import GlobalBatchSize
from ufork.train.session import Phase, Session, open_session
from ufork.train.step import run_step

SAVED_STEP, STEPS = 3, 6
MOST_ERROR = 1e-4
"""Largest relative difference of weights and moments that rounding in another order explains, three steps on."""

State = dict[str, Tensor]
"""Weights and moments of all parameters, by kind and name."""


@dataclass(frozen=True)
class _Course:
    """State of the rank when it was saved or restored, and at the end."""

    middle: State
    end: State


def run(report: Report, *, cpu: bool) -> None:
    """Fails if restored state is not what was saved, or leads elsewhere."""
    device_of(cpu=cpu)
    with tempfile.TemporaryDirectory() as path, join_world(single_rank(), timeout_seconds=30) as world:
        write_random_source(Path(path) / "random", DIMENSIONS)
        for optimizer in RATES:
            phase = _phase(Path(path), optimizer)
            undisturbed, resumed = _train_and_save(phase, world), _resume_and_train(phase, world)
            restored = _bits_differing(resumed.middle, undisturbed.middle)
            report.check(f"restored, {optimizer}", not restored, f"differs in {', '.join(restored[:5])}")
            names = sorted(name for name in undisturbed.end if not name.endswith(ROUNDING_ONLY))
            error = largest_error([resumed.end[name] for name in names], [undisturbed.end[name] for name in names])
            differing = _bits_differing(resumed.end, undisturbed.end)
            report.figure(optimizer, {"tensors": len(names), "differing_at_the_end": len(differing), "error": error})
            report.check(f"trained on, {optimizer}", error < MOST_ERROR, f"error {error:.2g}, at most {MOST_ERROR}")
            report.headline(f"{optimizer}: {'bit-equal' if not differing else f'equal to {error:.1g}'}")


def _phase(folder: Path, optimizer: str) -> Phase:
    sequences = GlobalBatchSize(understanding=0, generation=1)
    train = train_config(optimizer).model_copy(update={"global_batch_size": sequences})
    return Phase(
        name=optimizer,
        initial=initial_model(TINY, DIMENSIONS),
        train=train,
        data=DataConfig(generation=(SourceConfig(folder="random"),), seq_len=SEQ_LEN),
        layout=LayoutConfig(),
        tokenizer=TextTokenizer.train([PROMPT], vocab_size=DIMENSIONS.vocab_size),
        run=RunFolder(folder),
    )


def _train_and_save(phase: Phase, world: World) -> _Course:
    """Trains all steps; the save begins before a step and copies while its passes run."""
    with open_session(phase, world) as session:
        assert session.saver
        for step in range(STEPS):
            if step == SAVED_STEP:
                middle = _state(session)
                session.saver.save(TrainState(step=step), session.stream)
            _step(session, phase)
            session.saver.poll()
        session.saver.finish()
        return _Course(middle, _state(session))


def _resume_and_train(phase: Phase, world: World) -> _Course:
    with open_session(phase, world) as session:
        assert session.start.step == SAVED_STEP, session.start
        middle = _state(session)
        for _ in range(SAVED_STEP, STEPS):
            _step(session, phase)
        return _Course(middle, _state(session))


def _step(session: Session, phase: Phase) -> None:
    assert session.stream and session.saver
    sequences = session.stream.next_step()
    run_step(session.stage, sequences, phase.train.learning_rate, before_update=session.saver.before_update)


def _state(session: Session) -> State:
    shards = session.stage.engine.shards
    assert shards
    tensors = shards.read().tensors
    return {
        f"{kind} of {name}": tensor.detach().cpu().clone() for kind in tensors for name, tensor in tensors[kind].items()
    }


def _bits_differing(found: State, expected: State) -> list[str]:
    names = found.keys() ^ expected.keys()
    return sorted(names | {n for n in found.keys() & expected.keys() if not torch.equal(found[n], expected[n])})
