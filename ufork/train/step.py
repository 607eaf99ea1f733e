"""One training step: count targets, run every row forward and backward, agree on the figures, update."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ufork.parallel.engine import Engine
from ufork.train.loss_weighting import task_order
from ufork.vocabulary import PackedSequence, Task

Rows = Mapping[Task, Sequence[PackedSequence]]


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
    """This rank's samples in rows whose loss was not finite; all of the rank's if no row's on any rank was."""

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken; all ranks agree, since the figures are the job's."""
        return math.isfinite(self.gradient_norm) and all(map(math.isfinite, self.losses.values()))


def run_step(engine: Engine, rows: Rows, learning_rate: float) -> StepResult:
    """Trains on `rows`, this rank's share of the step; every rank has as many rows of each task.

    A loss or gradient that is not finite leaves weights and optimizer as they were.

    Raises:
        PeerError: another rank is gone.
    """
    tasks = list(rows)
    every_row = [row for task in tasks for row in rows[task]]
    counts = [float(sum(row.num_targets for row in rows[task])) for task in tasks]
    real = sum(row.num_real_tokens for row in every_row)
    padding = sum(len(row.token_ids_T) for row in every_row) - real
    *counts, real_tokens, padding_tokens = engine.world.sum(*counts, real, padding)
    num_targets = {task: max(count, 1.0) for task, count in zip(tasks, counts, strict=True)}
    sums, broken = _accumulate(engine, rows, num_targets)
    totals = engine.world.sum(*(sums[task] for task in tasks))
    gradient_norm = engine.step(learning_rate)
    losses = {task: total / num_targets[task] for task, total in zip(tasks, totals, strict=True)}
    suspects = broken if not all(map(math.isfinite, totals)) else rows
    return StepResult(
        losses=losses,
        gradient_norm=gradient_norm,
        num_real_tokens=int(real_tokens),
        num_padding_tokens=int(padding_tokens),
        suspects={task: _sample_ids(suspects[task]) for task in tasks},
    )


def _accumulate(
    engine: Engine, rows: Rows, num_targets: dict[Task, float]
) -> tuple[dict[Task, float], dict[Task, list[PackedSequence]]]:
    """Gradients of all rows; returns this rank's summed cross-entropies and the rows where they are not finite."""
    sums = dict.fromkeys(rows, 0.0)
    broken: dict[Task, list[PackedSequence]] = {task: [] for task in rows}
    waiting = {task: iter(rows[task]) for task in rows}
    with engine.accumulating():
        for task in task_order({task: len(rows[task]) for task in rows}):
            row = next(waiting[task])
            part, total = engine.forward(row.to(str(engine.world.device)), num_targets[task])
            engine.backward(part)
            sums[task] += total.item()
            if not math.isfinite(total.item()):
                broken[task].append(row)
    return sums, broken


def _sample_ids(rows: Sequence[PackedSequence]) -> tuple[str, ...]:
    return tuple(sample_id for row in rows for sample_id in row.sample_ids)
