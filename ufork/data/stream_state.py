"""Where a job's data stream stands: small, told by every replica, and enough to go on from on any other number of them.

    replica's lanes -> StreamState (its own lanes)  --join-->  StreamState (all lanes)  -> TrainingStream.restore

A lane's position is how many samples it took from each source; since rows belong to lanes and not to ranks, the same
state serves any number of replicas. What the positions count in must be the same: seed, lanes and sources.
"""

from collections.abc import Mapping, Sequence

from pydantic import NonNegativeInt, PositiveInt

from ufork.config import Config
from ufork.errors import CheckpointError
from ufork.vocabulary import Task

STREAM_STATE_VERSION = 2


class SourceState(Config):
    """What a position within a source is worth nothing without."""

    folder: str
    recipe: str
    """Digest of what its shards were made from (`Manifest.recipe`)."""
    samples: NonNegativeInt
    weight: float
    reader: str
    """What orders its samples."""


class StreamState(Config):
    """A stream between two steps."""

    version: int = STREAM_STATE_VERSION
    seed: int
    num_lanes: PositiveInt
    step: NonNegativeInt
    """Steps whose rows were read."""
    first_sequence: Mapping[Task, NonNegativeInt]
    """Of each task, rows that were read: the next one is of lane first_sequence mod num_lanes."""
    sources: Mapping[Task, tuple[SourceState, ...]]
    taken: Mapping[Task, Mapping[int, tuple[NonNegativeInt, ...]]]
    """Of each task and lane, samples taken from each source."""

    def require_fits(self, now: "StreamState", *, origin: str) -> None:
        """Holds what this state was taken from against `now`, that of a fresh stream.

        Raises:
            CheckpointError: names what has changed.
        """
        changes = [
            f"{name} was {mine}, is {others}"
            for name, mine, others in (
                ("its version", self.version, now.version),
                ("run.seed (with the stage's number)", self.seed, now.seed),
                ("data.num_lanes", self.num_lanes, now.num_lanes),
            )
            if mine != others
        ]
        changes += [change for task in now.sources for change in self._changes_of(task, now)]
        if changes:
            raise CheckpointError(
                f"{origin}: the data has changed, so its place in the stream means nothing any more: "
                f"{'; '.join(changes)}. Restore what it was, or start anew with train.resume=never"
            )

    def _changes_of(self, task: Task, now: "StreamState") -> list[str]:
        mine, others = self.sources.get(task, ()), now.sources[task]
        if [source.folder for source in mine] != [source.folder for source in others]:
            return [f"data.{task} was {[s.folder for s in mine]}, is {[s.folder for s in others]}"]
        return [
            f"{name} of data.{task}'s {source.folder} was {getattr(source, name)}, is {getattr(other, name)}"
            for source, other in zip(mine, others, strict=True)
            for name in ("weight", "samples", "recipe", "reader")
            if getattr(source, name) != getattr(other, name)
        ]


def join_states(states: Sequence[StreamState]) -> StreamState:
    """One state with the lanes of all replicas' states."""
    first = states[0]
    taken: dict[Task, dict[int, tuple[int, ...]]] = {task: {} for task in first.taken}
    for state in states:
        assert (state.step, state.first_sequence) == (first.step, first.first_sequence), (
            "replicas stand at different steps"
        )
        for task, lanes in state.taken.items():
            assert not taken[task].keys() & lanes.keys(), "a lane belongs to one replica"
            taken[task] |= lanes
    assert all(len(lanes) == first.num_lanes for lanes in taken.values()), "every lane belongs to a replica"
    return first.model_copy(update={"taken": taken})
