"""Which rank does what: pure arithmetic, free of torch, so that every process and the planner can ask.

    LayoutConfig + number of ranks + rows per step -> Layout: the stages present, their shapes, every rank's place

Words: a *stage* is the trunk, a branch, or (colocated) the whole model; its ranks form a grid dp x tp. A *replica* is
the tp ranks that share one dp coordinate. Row j of a task in a step is run by replica j mod dp of each stage on its
path, as its micro-batch number j div dp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.vocabulary import Task


class Stage(StrEnum):
    """What one DeepSpeed world trains."""

    COLOCATED = "colocated"
    TRUNK = "trunk"
    UNDERSTANDING = "understanding"
    GENERATION = "generation"


BRANCHES = {Task.UNDERSTANDING: Stage.UNDERSTANDING, Task.GENERATION: Stage.GENERATION}
"""The branch of each task."""
TASK_OF = {stage: task for task, stage in BRANCHES.items()}


@dataclass(frozen=True, kw_only=True)
class MeshCoordinate:
    """Where one rank of the job stands."""

    stage: Stage
    dp_rank: int
    tp_rank: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The stages of one training stage of a recipe."""

    shapes: Mapping[Stage, StageShape]
    """Present stages in the order trunk, understanding, generation; or WHOLE alone."""
    coordinates: tuple[MeshCoordinate, ...]
    """By rank of the job; a rank whose stage is not among `shapes` idles."""
    global_batch_size: Mapping[Task, int]
    """Rows of the whole job; tasks without rows are left out."""

    @property
    def reader(self) -> Stage:
        """The stage that reads data."""
        return Stage.COLOCATED if Stage.COLOCATED in self.shapes else Stage.TRUNK

    def ranks_of(self, stage: Stage) -> tuple[int, ...]:
        """Ranks of the job in `stage`, in the order of their rank within it: dp-major."""
        return self._ranks[stage]

    @cached_property
    def _ranks(self) -> dict[Stage, tuple[int, ...]]:
        """Made once: every transfer asks."""
        return {stage: ranks_of(self.coordinates, stage) for stage in Stage}

    def rank_at(self, stage: Stage, *, dp_rank: int, tp_rank: int) -> int:
        """The job's rank at a place."""
        return self.ranks_of(stage)[dp_rank * self.shapes[stage].tp + tp_rank]

    def sequence_number(self, coordinate: MeshCoordinate, index: int) -> int:
        """Number, among its task's rows of the step, of what the replica at `place` knows as micro-batch `index`."""
        return index * self.shapes[coordinate.stage].dp + coordinate.dp_rank

    def num_micro_batches(self, stage: Stage) -> dict[Task, int]:
        """Rows that one replica of `stage` runs in a step, by task."""
        tasks = [TASK_OF[stage]] if stage in TASK_OF else list(self.global_batch_size)
        return {task: self.global_batch_size[task] // self.shapes[stage].dp for task in tasks}

    @property
    def present_ranks(self) -> tuple[int, ...]:
        """Ranks of the job that have work."""
        return tuple(rank for rank, coordinate in enumerate(self.coordinates) if coordinate.stage in self.shapes)

    def describe(self, rank: int) -> str:
        """As "rank 5 (generation, replica 1 of 3, tp rank 0 of 1)"."""
        coordinate = self.coordinates[rank]
        shape = self.shapes[coordinate.stage]
        where = f"replica {coordinate.dp_rank} of {shape.dp}, tp rank {coordinate.tp_rank} of {shape.tp}"
        return f"rank {rank} ({coordinate.stage}, {where})"


def ranks_of(coordinates: tuple[MeshCoordinate, ...], stage: Stage) -> tuple[int, ...]:
    """Ranks of the job in `stage`, in the order of their rank within it: dp-major."""
    members = [
        (coordinate.dp_rank, coordinate.tp_rank, rank)
        for rank, coordinate in enumerate(coordinates)
        if coordinate.stage == stage
    ]
    return tuple(rank for _, _, rank in sorted(members))


def make_layout(config: LayoutConfig, *, num_ranks: int, global_batch_size: Mapping[Task, int]) -> Layout:
    """Lays `num_ranks` ranks out.

    Raises:
        ConfigError: the ranks, rows or shapes do not go together; the message shows the arithmetic.
    """
    sequences = {task: number for task, number in global_batch_size.items() if number}
    shapes = stage_shapes(config, num_ranks)
    present = {stage: shape for stage, shape in shapes.items() if stage not in TASK_OF or TASK_OF[stage] in sequences}
    _require_sequences(present, sequences)
    return Layout(shapes=present, coordinates=place_ranks(config, num_ranks), global_batch_size=sequences)


def stage_shapes(config: LayoutConfig, num_ranks: int) -> dict[Stage, StageShape]:
    """All stages that the layout knows.

    Raises:
        ConfigError: the shapes do not add up to `num_ranks`, or do not share evenly what passes between them.
    """
    if config.kind == "colocated":
        return {Stage.COLOCATED: _colocated_shape(config, num_ranks)}
    shapes = {Stage(name): getattr(config, name) for name in ("trunk", "understanding", "generation")}
    _require_ranks(shapes, num_ranks)
    _require_slices(shapes)
    return shapes


def place_ranks(config: LayoutConfig, num_ranks: int) -> tuple[MeshCoordinate, ...]:
    """Every rank's place, the same in all stages of a recipe; raises as `stage_shapes`."""
    shapes = stage_shapes(config, num_ranks)
    return tuple(_by_replica(shapes) if config.placement == "replicas" else _by_stage(shapes))


def num_ranks_of(config: LayoutConfig) -> int | None:
    """Ranks that a forked layout needs; None for a colocated one, which takes any number."""
    if config.kind == "colocated":
        return None
    return config.trunk.size + config.understanding.size + config.generation.size


def _colocated_shape(config: LayoutConfig, num_ranks: int) -> StageShape:
    if num_ranks % config.colocated_tp:
        raise ConfigError(
            f"layout.colocated_tp={config.colocated_tp} does not divide the {num_ranks} ranks of the job; start a"
            " multiple of it"
        )
    return StageShape(tp=config.colocated_tp, dp=num_ranks // config.colocated_tp)


def _require_ranks(shapes: Mapping[Stage, StageShape], num_ranks: int) -> None:
    needed = sum(shape.size for shape in shapes.values())
    if needed != num_ranks:
        terms = " + ".join(f"{stage} {shape.tp}x{shape.dp}" for stage, shape in shapes.items())
        raise ConfigError(
            f"layout: forked takes (tp x dp) {terms} = {needed} ranks, the job has {num_ranks}; start {needed} ranks"
            " or change the shapes"
        )


def _require_slices(shapes: Mapping[Stage, StageShape]) -> None:
    """A trunk replica's ranks and a branch replica's share what passes between them evenly."""
    trunk_tp = shapes[Stage.TRUNK].tp
    for stage, shape in shapes.items():
        if max(trunk_tp, shape.tp) % min(trunk_tp, shape.tp):
            raise ConfigError(
                f"layout: trunk.tp={trunk_tp} and {stage}.tp={shape.tp}: one must be a multiple of the other"
            )


def _require_sequences(shapes: Mapping[Stage, StageShape], sequences: Mapping[Task, int]) -> None:
    """ZeRO's gathers are collective: all replicas of a stage must run equally many rows."""
    for stage, shape in shapes.items():
        for task in [TASK_OF[stage]] if stage in TASK_OF else sequences:
            if sequences[task] % shape.dp:
                raise ConfigError(
                    f"train.global_batch_size.{task}={sequences[task]} is not a multiple of the {shape.dp}"
                    f" data-parallel replicas of the stage {stage}, which must run equally many rows"
                )


def _by_stage(shapes: Mapping[Stage, StageShape]) -> list[MeshCoordinate]:
    return [coordinate for stage, shape in shapes.items() for coordinate in _grid(stage, shape)]


def _by_replica(shapes: Mapping[Stage, StageShape]) -> list[MeshCoordinate]:
    """Replicas of all stages dealt out evenly: sorted by the middle of their share of the job's rows."""
    replicas = [
        ((dp_rank + 0.5) / shape.dp, number, stage, dp_rank)
        for number, (stage, shape) in enumerate(shapes.items())
        for dp_rank in range(shape.dp)
    ]
    return [
        MeshCoordinate(stage=stage, dp_rank=dp_rank, tp_rank=tp_rank)
        for _, _, stage, dp_rank in sorted(replicas)
        for tp_rank in range(shapes[stage].tp)
    ]


def _grid(stage: Stage, shape: StageShape) -> list[MeshCoordinate]:
    return [
        MeshCoordinate(stage=stage, dp_rank=dp_rank, tp_rank=tp_rank)
        for dp_rank in range(shape.dp)
        for tp_rank in range(shape.tp)
    ]
