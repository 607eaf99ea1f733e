"""The loop of one training stage.

this rank's stage; per step: the stream's rows -> run_step -> telemetry; at last: whole weights on the leader
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ufork.checkpoint.folder import TrainState
from ufork.checkpoint.saver import Saver
from ufork.data.stream import TrainingStream
from ufork.errors import NonFiniteError, StoppedError
from ufork.model.weights import MODEL_PREFIX
from ufork.parallel.tracing.step_trace import PICTURE_FILE, StepTrace, as_json
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.collect_weights import Shapes, collect_weights
from ufork.train.config import TrainConfig
from ufork.train.learning_rate import learning_rate
from ufork.train.progress import Progress, progress_of
from ufork.train.stage import TrainingStage
from ufork.train.step import StepResult, run_step
from ufork.train.telemetry import Telemetry

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]

TRACED_STEP = 2
"""Counted from 0: before it ZeRO-3 still learns in which order weights are wanted."""


class _Course:
    """How far a stage is, by this rank's clock."""

    def __init__(self, start: TrainState) -> None:
        self.step, self.steps_skipped = start.step, start.steps_skipped
        self._began = time.monotonic() - start.seconds

    @property
    def position(self) -> TrainState:
        """At this moment."""
        seconds = time.monotonic() - self._began
        return TrainState(step=self.step, seconds=seconds, steps_skipped=self.steps_skipped)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What goes on beside the steps of a stage; all ranks with work agree on it."""

    start: TrainState | None = None
    """Where the stage goes on from; its beginning unless given."""
    saver: Saver | None = None
    """Saves checkpoints, where there are any."""
    asked_to_stop: Callable[[], bool] = lambda: False
    """Whether this rank was."""
    draw_grid: Callable[[Weights], np.ndarray] | None = None
    """Makes a picture of `drawing_prompts` from whole weights, every `draw_every_steps`."""
    trace_folder: Path | None = None
    """Where one step's trace is left (`ufork.parallel.tracing.step_trace`)."""


def train_phase(
    stage: TrainingStage,
    config: TrainConfig,
    stream: TrainingStream | None,
    telemetry: Telemetry,
    shapes: Shapes,
    beside: Hooks | None = None,
) -> Weights:
    """Trains up to `config.steps` steps or `config.limit_seconds`; all ranks with work call it alike.

    Args:
        stage: this rank's part; closed at the end.
        config: of the recipe's stage.
        stream: rows for this rank's replica, where it reads data.
        telemetry: speaks on the leader.
        shapes: of the weights that are returned: by name, whole, fp32, on the leader; none on the other ranks.
        beside: checkpoints, drawings, a trace, and requests to stop.

    Raises:
        UforkError: too many steps were not finite, a rank is gone, some rank was asked to stop, or too many checkpoints
            could not be written.
    """
    beside = beside or Hooks()
    course = _Course(beside.start or TrainState())
    while (progress := _progress(course, config, beside, stage.bridge)).share < 1 and not progress.stopping:
        rate = learning_rate(config, progress.share)
        result = _take_step(stage, config, stream, course, beside, rate)
        telemetry.record(course.step, result, rate)
        course.step += 1
        if beside.saver:
            beside.saver.after_step(course.position, stream, result.losses)
        _draw(stage, config, telemetry, shapes, course, beside)
    _save_last(course, stream, beside, finished=progress.share >= 1)
    weights = whole_weights(stage, shapes)
    if beside.trace_folder:
        _save_trace(stage, beside.trace_folder)
    stage.engine.close()
    return weights


def _progress(course: _Course, config: TrainConfig, beside: Hooks, bridge: Bridge) -> Progress:
    now = course.position
    return progress_of(config, steps=now.step, seconds=now.seconds, asked_to_stop=beside.asked_to_stop(), ranks=bridge)


def _take_step(
    stage: TrainingStage,
    config: TrainConfig,
    stream: TrainingStream | None,
    course: _Course,
    beside: Hooks,
    rate: float,
) -> StepResult:
    stage.tracer.on = beside.trace_folder is not None and course.step == min(TRACED_STEP, config.steps - 1)
    sequences = stream.next_step() if stream else {}
    result = run_step(stage, sequences, rate, before_update=beside.saver.before_update if beside.saver else None)
    if not result.is_finite:
        course.steps_skipped += 1
        _tolerate(result, course, config, stage.bridge)
    return result


def _draw(
    stage: TrainingStage, config: TrainConfig, telemetry: Telemetry, shapes: Shapes, course: _Course, beside: Hooks
) -> None:
    if beside.draw_grid and config.draw_every_steps and course.step % config.draw_every_steps == 0:
        weights = whole_weights(stage, shapes)
        if stage.bridge.is_leader:
            telemetry.show(course.step, beside.draw_grid(weights))


def _save_last(course: _Course, stream: TrainingStream | None, beside: Hooks, *, finished: bool) -> None:
    """Leaves a checkpoint of the stage's end, or of where it was stopped."""
    if beside.saver:
        beside.saver.save(course.position, stream)
        beside.saver.finish()
    if not finished:
        raise StoppedError(f"stopped by a signal after step {course.step}; the same command goes on from there")


def whole_weights(stage: TrainingStage, shapes: Shapes) -> Weights:
    """The model's own parameters, whole, on the leader; all ranks with work must call."""
    own = stage.engine.full_weights()
    named = {name.removeprefix(MODEL_PREFIX): own[name] for name in own if name.startswith(MODEL_PREFIX)}
    return collect_weights(stage.bridge, named, shapes)


def _save_trace(stage: TrainingStage, folder: Path) -> None:
    spans = stage.bridge.gather(as_json(stage.tracer.spans))
    if stage.bridge.is_leader:
        trace = StepTrace.from_json(stage.layout, spans)
        trace.save(folder)
        bubble = ", ".join(f"{name} {share:.1%}" for name, share in trace.bubble().items())
        log.info("trace: %s (bubble: %s)", folder / PICTURE_FILE, bubble)


def _tolerate(result: StepResult, course: _Course, config: TrainConfig, bridge: Bridge) -> None:
    broken = {str(task): loss for task, loss in result.losses.items() if not np.isfinite(loss)}
    what = f"step {course.step}: losses {broken or 'finite'}, gradient norm {result.gradient_norm}"
    log.warning("%s; the step is skipped (%d so far)", what, course.steps_skipped)
    if course.steps_skipped > config.max_nonfinite_steps:
        raise NonFiniteError(
            f"{what}; more than train.max_nonfinite_steps={config.max_nonfinite_steps} steps were not finite."
            f" Samples in question: {_suspect_samples_of(bridge.gather(result.suspect_samples))}."
            " Lower the learning rate or look at the samples"
        )


def _suspect_samples_of(by_rank: list[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    tasks = sorted({task for suspect_samples in by_rank for task in suspect_samples})
    samples = {task: [name for suspect_samples in by_rank for name in suspect_samples.get(task, ())] for task in tasks}
    return {task: names for task, names in samples.items() if names}
