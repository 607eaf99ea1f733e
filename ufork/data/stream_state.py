"""Position of a job's data stream: small, collected from every replica, and restored on any number of replicas.

    each replica: StreamState of its lanes  --join_states-->  StreamState of all lanes  -> TrainingStream.restore

A lane's position is the number of samples that it took from each source. Packed sequences belong to lanes, not to
ranks, so the same state serves any number of replicas. Seed, lanes and sources must be the same.
"""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import NonNegativeInt, PositiveInt

from ufork.config import Config
from ufork.errors import CheckpointError
from ufork.vocabulary import Task

STREAM_STATE_VERSION = 2


class SourceState(Config):
    """The data of a source that its positions refer to."""

    folder: str
    recipe: str
    """Digest of everything that its shards were made from (`Manifest.recipe`)."""
    samples: NonNegativeInt
    weight: float
    reader: str
    """`SourceConfig.reader`, which decides on the order of its samples."""


class StreamState(Config):
    """A stream between two steps."""

    version: int = STREAM_STATE_VERSION
    seed: int
    num_lanes: PositiveInt
    step: NonNegativeInt
    """Number of steps whose packed sequences were read."""
    first_sequence: Mapping[Task, NonNegativeInt]
    """Number of packed sequences read, by task; the next one is of lane first_sequence mod num_lanes."""
    sources: Mapping[Task, tuple[SourceState, ...]]
    taken: Mapping[Task, Mapping[int, tuple[NonNegativeInt, ...]]]
    """Number of samples taken from each source, by task and lane."""

    def require_fits(self, now: "StreamState", *, origin: str) -> None:
        """Compares the data of this state with that of `now`, the state of a new stream.

        Raises:
            CheckpointError: names what has changed.
        """
        changes = [
            f"{name} was {mine}, is {others}"
            for name, mine, others in (
                ("its version", self.version, now.version),
                ("run.seed (plus the phase's number)", self.seed, now.seed),
                ("data.num_lanes", self.num_lanes, now.num_lanes),
            )
            if mine != others
        ]
        if self.sources.keys() != now.sources.keys():
            changes.append(f"train.global_batch_size was of {_names(self.sources)}, is of {_names(now.sources)}")
        changes += [
            change for task in self.sources.keys() & now.sources.keys() for change in self._changes_of(task, now)
        ]
        if changes:
            raise CheckpointError(
                f"{origin}: cannot resume, since the data has changed: {'; '.join(changes)}. Restore the earlier"
                " values, or start the phase over with phases.NAME.train.resume=never"
            )

    def require_complete(self, *, origin: str) -> None:
        """Checks that every task has every lane's position in each of its sources.

        Raises:
            CheckpointError: one is missing.
        """
        for task, sources in self.sources.items():
            lanes = self.taken.get(task, {})
            is_complete = lanes.keys() == set(range(self.num_lanes)) and task in self.first_sequence
            if not is_complete or any(len(counts) != len(sources) for counts in lanes.values()):
                raise CheckpointError(
                    f"{origin}: damaged: it lacks positions of {task}; resume from another checkpoint"
                )

    def _changes_of(self, task: Task, now: "StreamState") -> list[str]:
        mine, others = self.sources[task], now.sources[task]
        if len(mine) != len(others) or not all(map(_may_be_same, mine, others)):
            return [f"data.{task} was {[s.folder for s in mine]}, is {[s.folder for s in others]}"]
        return [
            f"{name} of data.{task}'s {source.folder} was {getattr(source, name)}, is {getattr(other, name)}"
            for source, other in zip(mine, others, strict=True)
            for name in ("weight", "samples", "recipe", "reader")
            if getattr(source, name) != getattr(other, name)
        ]


def _may_be_same(source: SourceState, other: SourceState) -> bool:
    """Whether they are one source, which may have been moved: then it was made from the same."""
    return source.folder == other.folder or (source.recipe != "" and source.recipe == other.recipe)


def _names(tasks: Iterable[Task]) -> str:
    return " and ".join(sorted(tasks))


def join_states(states: Sequence[StreamState]) -> StreamState:
    """Joins the states of all replicas into one with all lanes."""
    first = states[0]
    taken: dict[Task, dict[int, tuple[int, ...]]] = {task: {} for task in first.taken}
    for state in states:
        assert (state.step, state.first_sequence) == (first.step, first.first_sequence), (
            "replicas are at different steps"
        )
        for task, lanes in state.taken.items():
            assert not taken[task].keys() & lanes.keys(), "a lane belongs to one replica"
            taken[task] |= lanes
    assert all(len(lanes) == first.num_lanes for lanes in taken.values()), "every lane belongs to a replica"
    return first.model_copy(update={"taken": taken})
