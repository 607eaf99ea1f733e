"""The train loop of one phase.

Session -> per step: packed sequences -> run_step -> metrics, checkpoint, drawing, probes -> whole weights on the leader
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ufork.checkpoint.state import TrainState
from ufork.errors import NonFiniteError, StoppedError, StorageError
from ufork.model.cuda_device import memory_figures
from ufork.parallel.tracing.step_trace import PICTURE_FILE, StepTrace, as_json
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.leader_work import LeaderWork
from ufork.train.config import TrainConfig
from ufork.train.initial_model import Weights
from ufork.train.objectives.gradnorm import rebalanced
from ufork.train.optimization.learning_rate import learning_rate
from ufork.train.probes.probe import Probe, ShowAlive
from ufork.train.progress import Progress, progress_of
from ufork.train.session import Session
from ufork.train.stage import TrainingStage
from ufork.train.step import StepResult, run_step

log = logging.getLogger(__name__)

DrawGrid = Callable[[Weights, ShowAlive], np.ndarray]
"""(whole weights, sign of life) -> picture, uint8 [rows, columns, 3]."""
TRACED_STEP = 2
"""Number of the traced step, from 0; in earlier steps ZeRO-3 still learns in which order weights are needed."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Functions that the caller adds to the steps of a phase; the same on all ranks with work."""

    asked_to_stop: Callable[[], bool] = lambda: False
    """Whether this rank was asked to stop."""
    draw_grid: DrawGrid | None = None
    """Draws `drawing_prompts`; called on the leader every `draw_every_steps`, while the other ranks wait."""
    probes: Sequence[Probe] = ()
    """Measurements during training; made on the leader, while the other ranks wait."""
    trace_folder: Path | None = None
    """Folder for the trace of one step (`ufork.parallel.tracing.step_trace`)."""


class _Counters:
    """Progress of a phase, by this rank's clock."""

    def __init__(self, start: TrainState) -> None:
        self.step, self.steps_skipped, self.loss_balance = start.step, start.steps_skipped, start.loss_balance
        self._began = time.monotonic() - start.seconds

    @property
    def train_state(self) -> TrainState:
        seconds = time.monotonic() - self._began
        return TrainState(
            step=self.step, seconds=seconds, steps_skipped=self.steps_skipped, loss_balance=self.loss_balance
        )


def train_phase(session: Session, hooks: Hooks | None = None) -> Weights:
    """Trains up to `config.steps` steps or `config.limit_seconds`; every rank with work must call.

    Returns:
        All weights of the model (whole, fp32, CPU) on the leader, none on other ranks.

    Raises:
        NonFiniteError: more than `config.max_nonfinite_steps` steps had a loss or gradient that was not finite.
        StoppedError: a rank was asked to stop; a checkpoint is saved.
        StorageError: too many checkpoints could not be written, or the metrics could not.
        PeerError: another rank is gone.
    """
    hooks = hooks or Hooks()
    config, stage, stream, saver = session.config, session.stage, session.stream, session.saver
    counters = _Counters(session.start)
    while (progress := _progress(config, counters, hooks, stage.bridge)).share < 1 and not progress.stopping:
        is_traced = hooks.trace_folder is not None and counters.step == min(TRACED_STEP, config.steps - 1)
        rate = learning_rate(config, progress.share)
        sequences = stream.next_step() if stream else {}
        with session.device_errors(f"step {counters.step}"), stage.tracer.recording(on=is_traced):
            before_update = saver.before_update if saver else None
            result = run_step(stage, sequences, rate, balance=counters.loss_balance, before_update=before_update)
            if is_traced:
                stage.bridge.wait_for_device("the traced step")
        if result.is_finite:
            losses, norms = result.losses, result.fork_gradient_norms
            counters.loss_balance = rebalanced(counters.loss_balance, config, losses=losses, norms=norms)
        else:
            _count_skipped_step(result, counters, config, stage.bridge)
        session.telemetry.record(counters.step, result, rate)
        counters.step += 1
        if saver:
            saver.after_step(counters.train_state, stream, result.losses)
        if hooks.draw_grid and config.draw_every_steps and counters.step % config.draw_every_steps == 0:
            _draw(session, counters.step, hooks.draw_grid)
        for probe in hooks.probes:
            if counters.step % probe.every_steps == 0:
                _measure(session, counters.step, probe)
    if saver:  # at the end of the phase, or where it was stopped
        saver.save(counters.train_state, stream)
        saver.finish()
    if progress.share < 1:
        raise StoppedError(f"stopped by a signal after step {counters.step}; run the same command again to resume")
    if hooks.trace_folder:
        _save_trace(stage, hooks.trace_folder)
    return session.whole_weights()


def _progress(config: TrainConfig, counters: _Counters, hooks: Hooks, bridge: Bridge) -> Progress:
    state = counters.train_state
    return progress_of(
        config, steps=state.step, seconds=state.seconds, asked_to_stop=hooks.asked_to_stop(), ranks=bridge
    )


def _draw(session: Session, step: int, draw_grid: DrawGrid) -> None:
    def draw(weights: Weights, show_alive: ShowAlive) -> None:
        with session.telemetry.tolerated():
            session.telemetry.show(step, draw_grid(weights, show_alive))

    remedy = "Give fewer train.drawing_prompts, lower evaluate.draw.batch_prompts, or set train.draw_every_steps=0"
    _work_on_leader(session, step, "drawings", draw, remedy=remedy)


def _measure(session: Session, step: int, probe: Probe) -> None:
    def measure(weights: Weights, show_alive: ShowAlive) -> None:
        with session.telemetry.tolerated():  # a measurement may need temporary files
            session.telemetry.add_measurement(step, probe.name, probe.measure(weights, show_alive))

    remedy = f"Set train.{probe.name}.every_steps=0"
    _work_on_leader(session, step, f"measurement of {probe.name}", measure, remedy=remedy)


def _work_on_leader(
    session: Session, step: int, what: str, work: Callable[[Weights, ShowAlive], None], *, remedy: str
) -> None:
    """Does `work` with whole weights on the leader while the others wait; skips what does not fit beside training."""
    weights = session.whole_weights()
    world = session.stage.world
    leader_work = LeaderWork(world, f"the {what} of {session.telemetry.phase} after step {step}")
    if not session.stage.bridge.is_leader:
        leader_work.wait()
        return
    with leader_work.under_way():
        try:
            work(weights, leader_work.show_alive)
        except torch.OutOfMemoryError as error:
            found = memory_figures(error)
            log.warning("no %s after step %d: the GPU has too little memory. %s %s", what, step, found, remedy)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()  # what the work has freed, for the next step's larger blocks


def _save_trace(stage: TrainingStage, folder: Path) -> None:
    spans = stage.bridge.gather(as_json(stage.tracer.spans))
    if not stage.bridge.is_leader:
        return
    if not stage.tracer.spans:
        log.warning("trace: none, since this start did not take step %d of the phase", TRACED_STEP + 1)
        return
    trace = StepTrace.from_json(stage.layout, spans)
    try:
        trace.save(folder)
    except StorageError as error:
        log.error("trace: %s; training continues", error)
        return
    bubble = ", ".join(f"{name} {share:.1%}" for name, share in trace.bubble().items())
    log.info("trace: %s (bubble: %s)", folder / PICTURE_FILE, bubble)


def _count_skipped_step(result: StepResult, counters: _Counters, config: TrainConfig, bridge: Bridge) -> None:
    """Logs a step that was not finite; raises NonFiniteError on all ranks once there are too many."""
    counters.steps_skipped += 1
    broken = {str(task): loss for task, loss in result.losses.items() if not math.isfinite(loss)}
    what = f"step {counters.step}: losses {broken or 'finite'}, gradient norm {result.gradient_norm}"
    log.warning("%s; the step is skipped (%d so far)", what, counters.steps_skipped)
    if counters.steps_skipped > config.max_nonfinite_steps:
        raise NonFiniteError(
            f"{what}; more than train.max_nonfinite_steps={config.max_nonfinite_steps} steps were not finite."
            f" Suspect samples: {_suspect_samples_of(bridge.gather(result.suspect_samples))}."
            " Lower the learning rate or inspect the samples"
        )


def _suspect_samples_of(by_rank: list[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    tasks = sorted({task for suspect_samples in by_rank for task in suspect_samples})
    samples = {task: [name for suspect_samples in by_rank for name in suspect_samples.get(task, ())] for task in tasks}
    return {task: names for task, names in samples.items() if names}
