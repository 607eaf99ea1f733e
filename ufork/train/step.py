"""One training step over the whole job: count targets, run the schedule, agree on the figures, update."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ufork.parallel.executor import Rows, Runner, run_actions
from ufork.train.stage import TrainingStage
from ufork.vocabulary import Task


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Figures of a step over the whole job."""

    losses: dict[Task, float]
    """Mean cross-entropy per target."""
    gradient_norm: float
    """Before clipping."""
    num_real_tokens: int
    num_padding_tokens: int
    suspects: dict[Task, tuple[str, ...]]
    """Samples that this rank read for rows whose loss was not finite; all that it read if no row's on any rank was."""

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken; all ranks agree, since the figures are the job's."""
        return math.isfinite(self.gradient_norm) and all(map(math.isfinite, self.losses.values()))


def run_step(
    stage: TrainingStage, rows: Rows, learning_rate: float, *, before_update: Callable[[], None] | None = None
) -> StepResult:
    """Trains on `rows`, which the ranks that read data have drawn for their replica; the others pass none.

    A loss or gradient that is not finite on any rank leaves weights and optimizers as they were on all of them.
    `before_update` is called when the passes are done, before weights and optimizers change.

    Raises:
        PeerError: another rank is gone.
    """
    counts, real_tokens, padding_tokens = _count(stage, rows)
    num_targets = {task: max(count, 1.0) for task, count in counts.items()}
    runner = stage.runner(stage.share_rows(rows), num_targets)
    with stage.engine.accumulating(once=not stage.reduce_each_backward):
        run_actions(stage.actions, runner, stage.tracer, who=stage.bridge.describe())
    with stage.tracer.span("send"):
        runner.finish()
    row_sums, gradient_norm = _agree(stage, runner)
    losses = {task: sum(row_sums[task]) / num_targets[task] for task in row_sums}
    with stage.tracer.span("step"):
        if before_update:
            before_update()
        stage.engine.step(learning_rate, gradient_norm if all(map(math.isfinite, losses.values())) else math.nan)
    return StepResult(
        losses=losses,
        gradient_norm=gradient_norm,
        num_real_tokens=real_tokens,
        num_padding_tokens=padding_tokens,
        suspects=_suspects(stage, rows, row_sums),
    )


def _count(stage: TrainingStage, rows: Rows) -> tuple[dict[Task, float], int, int]:
    """Targets of each task, tokens and padding of the whole job's step."""
    every_row = [row for task in rows for row in rows[task]]
    tasks = list(stage.layout.rows_per_step)
    counts = [float(sum(row.num_targets for row in rows.get(task, ()))) for task in tasks]
    real = sum(row.num_real_tokens for row in every_row)
    padding = sum(len(row.token_ids_T) for row in every_row) - real
    with stage.tracer.span("reduce", "targets"):
        *counts, all_real, all_padding = stage.bridge.sum(*counts, real, padding, waits_for="the step's target counts")
    return dict(zip(tasks, counts, strict=True)), int(all_real), int(all_padding)


def _agree(stage: TrainingStage, runner: Runner) -> tuple[dict[Task, list[float]], float]:
    """Every row's summed cross-entropy and the norm of the job's gradients; the same on all ranks."""
    if stage.tied:
        with stage.tracer.span("reduce", "tied embedding"):
            stage.tied.add_gradients()
    left_out = stage.tied.counted_elsewhere if stage.tied else ()
    sums = {task: [0.0] * number for task, number in stage.layout.rows_per_step.items()}
    if stage.world.leads_replica and runner.sums:
        totals = torch.stack(list(runner.sums.values())).tolist()
        for action, total in zip(runner.sums, totals, strict=True):
            sums[action.task][stage.layout.row_of(stage.world.place, action.index)] = total
    flat = [total for task in sums for total in sums[task]]
    with stage.tracer.span("reduce", "norm"):
        squared = stage.engine.squared_gradients(leave_out=left_out)
        *flat, squared = stage.bridge.sum(*flat, squared, waits_for="the step's losses and gradient norm")
    numbers = iter(flat)
    return {task: [next(numbers) for _ in sums[task]] for task in sums}, math.sqrt(squared)


def _suspects(stage: TrainingStage, rows: Rows, row_sums: Mapping[Task, list[float]]) -> dict[Task, tuple[str, ...]]:
    broken = {task: [not math.isfinite(total) for total in row_sums[task]] for task in row_sums}
    anywhere = any(any(flags) for flags in broken.values())
    return {
        task: tuple(
            sample_id
            for index, row in enumerate(rows[task])
            if not anywhere or broken[task][stage.layout.row_of(stage.world.place, index)]
            for sample_id in row.sample_ids
        )
        for task in rows
    }
