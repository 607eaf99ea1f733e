"""Assigns stages and packed sequences to ranks: arithmetic without torch, the same on every rank and in the planner.

    LayoutConfig + number of ranks -> MeshCoordinate of every rank
      + global batch size by task  -> Layout: the stages of a phase, and which replica runs which packed sequence

A *stage* is the trunk, a branch, or (colocated) the whole model; its ranks form a grid of dp x tp. A *replica* is the
tp ranks that share one dp rank. Packed sequence j of a task in a step is run by replica j mod dp of each stage on its
path, as that replica's micro-batch j div dp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from ufork.errors import ConfigError
from ufork.parallel.config import LayoutConfig, StageShape
from ufork.vocabulary import Task


class Stage(StrEnum):
    """The modules that one group of ranks trains: trunk, a branch, or (colocated) the whole model."""

    COLOCATED = "colocated"
    TRUNK = "trunk"
    UNDERSTANDING = "understanding"
    GENERATION = "generation"


BRANCHES = {Task.UNDERSTANDING: Stage.UNDERSTANDING, Task.GENERATION: Stage.GENERATION}
"""The branch of each task."""
TASK_OF = {stage: task for task, stage in BRANCHES.items()}


@dataclass(frozen=True, kw_only=True)
class MeshCoordinate:
    """One rank of a job: its stage, and its position in that stage's grid of dp x tp ranks."""

    rank: int
    """Number of the rank in the job, from 0."""
    stage: Stage
    shape: StageShape
    """Shape of the stage."""
    dp_rank: int
    tp_rank: int

    @property
    def leads_stage(self) -> bool:
        """Whether this is the first rank of its stage."""
        return self.dp_rank == self.tp_rank == 0

    @property
    def leads_replica(self) -> bool:
        """Whether this rank reads data, and counts, for its replica."""
        return self.tp_rank == 0

    def __str__(self) -> str:
        """Names the rank in messages: "rank 5 (generation, replica 1 of 3, tp rank 0 of 1)"."""
        where = f"replica {self.dp_rank} of {self.shape.dp}, tp rank {self.tp_rank} of {self.shape.tp}"
        return f"rank {self.rank} ({self.stage}, {where})"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The stages of one phase, the ranks of each, and the packed sequences of a step."""

    shapes: Mapping[Stage, StageShape]
    """Present stages in the order trunk, understanding, generation; or COLOCATED alone."""
    coordinates: tuple[MeshCoordinate, ...]
    """Coordinates by rank of the job; a rank whose stage is not among `shapes` idles."""
    global_batch_size: Mapping[Task, int]
    """Packed sequences per step of the whole job; tasks without any are absent."""

    @property
    def reader(self) -> Stage:
        """The stage that reads data."""
        return Stage.COLOCATED if Stage.COLOCATED in self.shapes else Stage.TRUNK

    def ranks_of(self, stage: Stage) -> tuple[int, ...]:
        """Ranks of the job in `stage`, dp-major."""
        return self._ranks[stage]

    @cached_property
    def _ranks(self) -> dict[Stage, tuple[int, ...]]:
        """Cached, since every transfer asks."""
        return {stage: ranks_of(self.coordinates, stage) for stage in Stage}

    def rank_at(self, stage: Stage, *, dp_rank: int, tp_rank: int) -> int:
        """Rank of the job at a position in the grid of `stage`."""
        return self.ranks_of(stage)[dp_rank * self.shapes[stage].tp + tp_rank]

    def sequence_number(self, coordinate: MeshCoordinate, index: int) -> int:
        """Number, among its task's sequences of a step, of micro-batch `index` of the replica at `coordinate`."""
        return index * self.shapes[coordinate.stage].dp + coordinate.dp_rank

    def num_micro_batches(self, stage: Stage) -> dict[Task, int]:
        """Packed sequences that one replica of `stage` runs in a step, by task."""
        tasks = [TASK_OF[stage]] if stage in TASK_OF else list(self.global_batch_size)
        return {task: self.global_batch_size[task] // self.shapes[stage].dp for task in tasks}

    @property
    def present_ranks(self) -> tuple[int, ...]:
        """Ranks of the job that have work."""
        return tuple(coordinate.rank for coordinate in self.coordinates if coordinate.stage in self.shapes)


def ranks_of(coordinates: tuple[MeshCoordinate, ...], stage: Stage) -> tuple[int, ...]:
    """Ranks of the job in `stage`, dp-major."""
    members = [coordinate for coordinate in coordinates if coordinate.stage == stage]
    return tuple(member.rank for member in sorted(members, key=lambda member: (member.dp_rank, member.tp_rank)))


def make_layout(config: LayoutConfig, *, num_ranks: int, global_batch_size: Mapping[Task, int]) -> Layout:
    """Returns the layout of a phase.

    Args:
        config: the recipe's layout.
        num_ranks: ranks of the job.
        global_batch_size: packed sequences per step, by task; the branch of a task with 0 is absent.

    Raises:
        ConfigError: ranks, batch sizes and shapes do not fit together; the message shows the arithmetic.
    """
    sequences = {task: number for task, number in global_batch_size.items() if number}
    shapes = stage_shapes(config, num_ranks)
    present = {stage: shape for stage, shape in shapes.items() if stage not in TASK_OF or TASK_OF[stage] in sequences}
    _require_equal_replicas(present, sequences)
    return Layout(shapes=present, coordinates=place_ranks(config, num_ranks), global_batch_size=sequences)


def stage_shapes(config: LayoutConfig, num_ranks: int) -> dict[Stage, StageShape]:
    """Returns the shapes of all stages of a layout, in every phase.

    Raises:
        ConfigError: the shapes do not add up to `num_ranks`, or cannot share evenly what passes between them.
    """
    if config.kind == "colocated":
        return {Stage.COLOCATED: _colocated_shape(config, num_ranks)}
    shapes = {Stage(name): getattr(config, name) for name in ("trunk", "understanding", "generation")}
    _require_ranks(shapes, num_ranks)
    _require_multiples(shapes)
    return shapes


def place_ranks(config: LayoutConfig, num_ranks: int) -> tuple[MeshCoordinate, ...]:
    """Returns the coordinate of every rank, the same in all phases of a recipe; raises as `stage_shapes`."""
    shapes = stage_shapes(config, num_ranks)
    replicas = [(stage, dp_rank) for stage, shape in shapes.items() for dp_rank in range(shape.dp)]
    if config.placement == "replicas":  # by the middle of each replica's share of the job's sequences
        replicas.sort(key=lambda replica: (replica[1] + 0.5) / shapes[replica[0]].dp)
    positions = [(stage, dp_rank, tp_rank) for stage, dp_rank in replicas for tp_rank in range(shapes[stage].tp)]
    return tuple(
        MeshCoordinate(rank=rank, stage=stage, shape=shapes[stage], dp_rank=dp_rank, tp_rank=tp_rank)
        for rank, (stage, dp_rank, tp_rank) in enumerate(positions)
    )


def num_ranks_of(config: LayoutConfig) -> int | None:
    """Returns the number of ranks of a forked layout, or None for a colocated one, which takes any number."""
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


def _require_multiples(shapes: Mapping[Stage, StageShape]) -> None:
    """The ranks of a trunk replica and of a branch replica split hidden states evenly."""
    trunk_tp = shapes[Stage.TRUNK].tp
    for stage, shape in shapes.items():
        if max(trunk_tp, shape.tp) % min(trunk_tp, shape.tp):
            raise ConfigError(
                f"layout: trunk.tp={trunk_tp} and {stage}.tp={shape.tp}: one must be a multiple of the other"
            )


def _require_equal_replicas(shapes: Mapping[Stage, StageShape], sequences: Mapping[Task, int]) -> None:
    """ZeRO's gathers are collective, so all replicas of a stage must run equally many sequences."""
    for stage, shape in shapes.items():
        for task in [TASK_OF[stage]] if stage in TASK_OF else sequences:
            number = sequences[task]
            if number % shape.dp:
                raise ConfigError(
                    f"train.global_batch_size.{task}={number} is not a multiple of the {shape.dp} data-parallel"
                    f" replicas of the {stage} stage, which must run equally many packed sequences; set"
                    f" {-(-number // shape.dp) * shape.dp} or change the dp"
                )
