"""Checks of a phase that need its configs only: pure, importable without torch.

    TrainConfig, DataConfig, LayoutConfig, sizes of the model, number of ranks -> Layout, or a ConfigError that
    names the key at fault, both values and the remedy

`open_session` runs the checks on every rank, and programs that start ranks run them before.
"""

from ufork.data.config import DataConfig
from ufork.errors import ConfigError
from ufork.model.config import Dimensions, ModelConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, Stage
from ufork.parallel.layout_checks import checked_layout
from ufork.train.config import TrainConfig
from ufork.train.trainable import require_trainable, stage_trains


def check_phase(
    train: TrainConfig,
    data: DataConfig,
    layout: LayoutConfig,
    model: ModelConfig,
    dimensions: Dimensions,
    *,
    num_ranks: int,
) -> Layout:
    """Returns the layout of the phase, after every check that needs no files and no process group.

    Raises:
        ConfigError: model, data, layout and number of ranks do not fit together.
    """
    _require_tasks(train, data, model)
    require_trainable(train, model)
    _require_gradients_to_balance(train)
    _require_optimizer_on_device(train)
    checked = checked_layout(
        layout,
        num_ranks=num_ranks,
        global_batch_size=train.global_batch_size.by_task,
        model=model,
        dimensions=dimensions,
        seq_len=data.seq_len,
        num_lanes=data.num_lanes,
        trunk_trains=stage_trains(Stage.TRUNK, train.trainable),
    )
    _require_lanes_for_workers(data, checked)
    return checked


def _require_tasks(train: TrainConfig, data: DataConfig, model: ModelConfig) -> None:
    for task, number in train.global_batch_size.by_task.items():
        if task not in model.tasks:
            raise ConfigError(
                f"train.global_batch_size.{task}={number}: model.tasks has no {task}; set it to 0 or add the task"
            )
        if not getattr(data, task):
            raise ConfigError(
                f"data.{task}: no source, and train.global_batch_size.{task}={number}; name a source or set that to 0"
            )


def _require_gradients_to_balance(train: TrainConfig) -> None:
    if not train.balances_gradients:
        return
    if not stage_trains(Stage.TRUNK, train.trainable):
        raise ConfigError(
            f"train.loss_weighting=gradnorm balances gradients that reach the trunk, and train.trainable="
            f"{list(train.trainable)} trains nothing there; add trunk to it, or set train.loss_weighting=fixed"
        )
    for task in train.global_batch_size.by_task:
        if not train.loss_weights.of(task):
            raise ConfigError(
                f"train.loss_weights.{task}=0: train.loss_weighting=gradnorm cannot balance a loss without a gradient;"
                f" set it above 0, or train.global_batch_size.{task}=0"
            )


def _require_lanes_for_workers(data: DataConfig, layout: Layout) -> None:
    lanes = data.num_lanes // layout.shapes[layout.reader].dp
    if data.num_workers > lanes:
        raise ConfigError(
            f"data.num_workers={data.num_workers}: each process takes at least one lane, and each data-parallel replica"
            f" has {lanes} of the data.num_lanes={data.num_lanes}; set data.num_workers={lanes} or less"
        )


def _require_optimizer_on_device(train: TrainConfig) -> None:
    zero = train.deepspeed.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    device = offload.get("device", "none") if isinstance(offload, dict) else "none"
    if train.optimizer == "muon" and device != "none":
        raise ConfigError(
            f"train.deepspeed.zero_optimization.offload_optimizer.device={device}: train.optimizer=muon multiplies"
            " matrices in its update, for which a host is too slow; set train.optimizer=adamw, or remove"
            " offload_optimizer"
        )
