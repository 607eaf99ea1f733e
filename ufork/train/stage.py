"""The objects of one rank while a phase trains: engine, mesh coordinate, links to other stages, list of actions.

`build_stage.py` makes it; `step.py` runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ufork.model.weights import MODEL_PREFIX
from ufork.parallel.engine.tied_embedding import TiedEmbedding
from ufork.parallel.engine.zero import Engine
from ufork.parallel.executor import BranchRunner, ColocatedRunner, Runner, Sequences, TrunkRunner
from ufork.parallel.layout import Layout, MeshCoordinate, Stage
from ufork.parallel.schedule.actions import Action
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.collect_weights import Shapes, collect_weights
from ufork.parallel.transport.link import Link
from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
from ufork.parallel.transport.stage_world import World
from ufork.train.initial_model import Weights
from ufork.train.objectives.cross_entropy import TaskLoss
from ufork.vocabulary import Task


def reads_data(coordinate: MeshCoordinate, layout: Layout) -> bool:
    """Returns whether a rank reads its replica's packed sequences from the stream."""
    return coordinate.stage == layout.reader and coordinate.leads_replica


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """One rank's stage of a phase, as `run_step` needs it."""

    engine: Engine
    world: World
    bridge: Bridge
    actions: tuple[Action, ...]
    sequences: PackedSequenceFormat
    in_flight: int
    trunk_trains: bool
    reduce_each_backward: bool
    dtype: torch.dtype
    link: Link | None
    """Transfers to and from other stages; None in the colocated layout."""
    tied: TiedEmbedding | None
    losses: Mapping[Task, TaskLoss]
    """Losses of the branches that this stage holds."""
    balances_gradients: bool
    """Whether losses are weighted by the norms of their gradients at the fork."""
    tracer: Tracer = field(default_factory=Tracer)

    @property
    def layout(self) -> Layout:
        """Layout of the job in this phase."""
        return self.bridge.layout

    @property
    def reads_data(self) -> bool:
        """Whether this rank reads its replica's packed sequences from the stream."""
        return reads_data(self.world.coordinate, self.layout)

    def broadcast_sequences(self, sequences: Sequences) -> Sequences:
        """Returns the sequences that the replica's first rank has read, on all its ranks, on the CPU, without ids."""
        group = self.world.tp_group
        if group.size() == 1 or self.world.coordinate.stage != self.layout.reader:
            return sequences
        numbers = self.layout.num_micro_batches(self.world.coordinate.stage)
        if self.reads_data:
            encoded = torch.stack([self.sequences.encode(sequence) for task in numbers for sequence in sequences[task]])
        else:
            encoded = torch.empty(sum(numbers.values()), self.sequences.size, dtype=torch.int32)
        dist.broadcast(encoded, group=group, group_src=0)
        decoded = iter([self.sequences.decode(sequence) for sequence in encoded])
        return {task: [next(decoded) for _ in range(number)] for task, number in numbers.items()}

    def whole_weights(self, shapes: Shapes) -> Weights:
        """Returns the model parameters named in `shapes`, whole, fp32, on the leader; every rank with work must call.

        Raises:
            PeerError: another rank is gone.
        """
        own = self.engine.full_weights()
        named = {name.removeprefix(MODEL_PREFIX): own[name] for name in own if name.startswith(MODEL_PREFIX)}
        return collect_weights(self.bridge, named, shapes)

    def squared_fork_gradients(self) -> list[Tensor]:
        """Returns this rank's term of each task's squared norm of gradients at the fork, since the last call.

        Scalars in fp64 on the rank's device, in the order of the layout's tasks; none unless `balances_gradients`.
        """
        if not self.balances_gradients:
            return []
        device, scale = self.engine.device, self.engine.gradient_scale
        terms = {task: torch.zeros((), dtype=torch.float64, device=device) for task in self.layout.global_batch_size}
        for task in terms.keys() & self.losses.keys():
            gradient = self.losses[task].fork_gradient
            assert gradient
            squared = gradient.take(device) / scale**2
            if self.world.coordinate.leads_replica:  # every rank of a replica has the whole gradient
                terms[task] = squared
        return list(terms.values())

    def runner(self, sequences: Sequences, num_targets: dict[Task, float]) -> Runner:
        """Returns the runner of one step's actions; `num_targets` are each task's targets in the whole job's step."""
        if self.link is None:
            return ColocatedRunner(self.engine, sequences, num_targets)
        if self.world.coordinate.stage is Stage.TRUNK:
            return TrunkRunner(self.engine, self.link, sequences, in_flight=self.in_flight)
        return BranchRunner(
            self.engine,
            self.link,
            num_targets,
            self.actions,
            trunk_trains=self.trunk_trains,
            in_flight=self.in_flight,
            dtype=self.dtype,
        )
