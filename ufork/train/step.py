"""One training step over the whole job: count targets, run the schedule, sum losses and gradient norm, update."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ufork.checkpoint.state import LossBalance
from ufork.parallel.executor import Runner, Sequences, run_actions
from ufork.train.stage import TrainingStage
from ufork.vocabulary import Task


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Figures of a step over the whole job."""

    losses: dict[Task, float]
    """Mean cross-entropy per target."""
    gradient_norm: float
    """Norm over the whole job, before clipping."""
    fork_gradient_norms: dict[Task, float] = field(default_factory=dict)
    """With `gradnorm`, norm of the gradient at the fork of each task's weighted mean loss."""
    loss_factors: dict[Task, float] = field(default_factory=dict)
    """With `gradnorm`, factors that the losses had."""
    num_real_tokens: int
    num_padding_tokens: int
    suspect_samples: dict[Task, tuple[str, ...]]
    """Ids of samples that this rank read for sequences whose loss is not finite, or of all that it read if the loss of
    every sequence of the job is finite."""

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken; all ranks agree, since the figures are the job's."""
        return math.isfinite(self.gradient_norm) and all(map(math.isfinite, self.losses.values()))


def run_step(
    stage: TrainingStage,
    sequences: Sequences,
    learning_rate: float,
    *,
    balance: LossBalance | None = None,
    before_update: Callable[[], None] | None = None,
) -> StepResult:
    """Trains on `sequences`, which the ranks that read data have drawn for their replica; other ranks pass none.

    If a loss or gradient is not finite on any rank, all ranks leave weights and optimizer as they are. `balance` has
    the factors of the losses, the same on all ranks. `before_update` is called after the passes, before weights and
    optimizer change.

    Raises:
        PeerError: another rank is gone.
    """
    counts, real_tokens, padding_tokens = _count(stage, sequences)
    num_targets = {task: max(count, 1.0) for task, count in counts.items()}
    balance = balance or LossBalance()
    for task, loss in stage.losses.items():
        loss.factor = balance.factor(task)
    runner = stage.runner(stage.broadcast_sequences(sequences), num_targets)
    with stage.engine.accumulating(once=not stage.reduce_each_backward):
        run_actions(stage.actions, runner, stage.tracer, who=stage.world.coordinate, mark=stage.bridge.mark)
        stage.bridge.wait_for_device("the step's passes")  # DeepSpeed's reduction waits for the device without time-out
    with stage.tracer.span("send"):
        runner.finish()
    sequence_sums, fork_norms, gradient_norm = _agree(stage, runner)
    losses = {task: sum(sequence_sums[task]) / num_targets[task] for task in sequence_sums}
    with stage.tracer.span("step"):
        if before_update:
            before_update()
        stage.engine.step(learning_rate, gradient_norm if all(map(math.isfinite, losses.values())) else math.nan)
    return StepResult(
        losses=losses,
        gradient_norm=gradient_norm,
        fork_gradient_norms=fork_norms,
        loss_factors={task: balance.factor(task) for task in fork_norms},
        num_real_tokens=real_tokens,
        num_padding_tokens=padding_tokens,
        suspect_samples=_suspect_samples(stage, sequences, sequence_sums),
    )


def _count(stage: TrainingStage, sequences: Sequences) -> tuple[dict[Task, float], int, int]:
    """Returns targets of each task, real tokens and padding tokens of the whole job's step."""
    every_sequence = [sequence for task in sequences for sequence in sequences[task]]
    tasks = list(stage.layout.global_batch_size)
    counts = [float(sum(sequence.num_targets for sequence in sequences.get(task, ()))) for task in tasks]
    real = sum(sequence.num_real_tokens for sequence in every_sequence)
    padding = sum(len(sequence.token_ids_T) for sequence in every_sequence) - real
    with stage.tracer.span("reduce", "targets"):
        *counts, all_real, all_padding = stage.bridge.sum(*counts, real, padding, waits_for="the step's target counts")
    return dict(zip(tasks, counts, strict=True)), int(all_real), int(all_padding)


def _agree(stage: TrainingStage, runner: Runner) -> tuple[dict[Task, list[float]], dict[Task, float], float]:
    """Returns figures of the job, the same on all ranks.

    Each sequence's summed cross-entropy, each task's norm of gradients at the fork (none unless losses are weighted by
    it), and the norm of all gradients.
    """
    if stage.tied:
        with stage.tracer.span("reduce", "tied embedding"):
            stage.tied.add_gradients()
    counted_elsewhere = stage.tied.counted_elsewhere if stage.tied else ()
    sums = {task: [0.0] * number for task, number in stage.layout.global_batch_size.items()}
    with stage.tracer.span("reduce", "norm"):
        squared_norm = stage.engine.squared_gradients(exclude=counted_elsewhere)
        on_device = torch.stack([*runner.sums.values(), *stage.squared_fork_gradients(), squared_norm])
        stage.bridge.wait_for_device("the step's losses and gradients")
        figures = on_device.tolist()
        totals, squares = figures[: len(runner.sums)], figures[len(runner.sums) :]
        if stage.world.coordinate.leads_replica:
            for action, total in zip(runner.sums, totals, strict=True):
                sums[action.task][stage.layout.sequence_number(stage.world.coordinate, action.index)] = total
        flat = [total for task in sums for total in sums[task]]
        numbers = iter(stage.bridge.sum(*flat, *squares, waits_for="the step's losses and gradient norm"))
    sums = {task: [next(numbers) for _ in sums[task]] for task in sums}
    *fork_norms, norm = map(math.sqrt, numbers)
    return sums, dict(zip(sums, fork_norms, strict=False)), norm


def _suspect_samples(
    stage: TrainingStage, sequences: Sequences, sequence_sums: Mapping[Task, list[float]]
) -> dict[Task, tuple[str, ...]]:
    broken = {task: [not math.isfinite(total) for total in sequence_sums[task]] for task in sequence_sums}
    anywhere = any(any(flags) for flags in broken.values())
    return {
        task: tuple(
            sample_id
            for index, sequence in enumerate(sequences[task])
            if not anywhere or broken[task][stage.layout.sequence_number(stage.world.coordinate, index)]
            for sample_id in sequence.sample_ids
        )
        for task in sequences
    }
