"""The rows of each training step, for one data-parallel rank.

    Mixture -> TaskStream by lane -> parts of a step, here or in loader processes -> a step's rows and where they end

A step takes its rows from the lanes in turn, and rank r of n has the lanes l with l mod n = r. Since n divides the
number of lanes and the number of rows per step, row j of a step is on rank j mod n, and is the same row for every n.
Likewise each loader process has lanes of its own, and rows do not depend on how many there are.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from ufork.data.config import DataConfig, SourceConfig
from ufork.data.mixture import Mixture
from ufork.data.prompts import CodecSizes
from ufork.data.shards.sequential_source import SequentialSource
from ufork.data.shards.source import ShardSource
from ufork.data.shards.storage import is_url
from ufork.data.skipped_samples import SkippedSamples
from ufork.data.stream_state import SourceState, StreamState
from ufork.data.task_stream import SkippedSample, TaskStream
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import ConfigError
from ufork.processes.prefetch import prefetch
from ufork.vocabulary import PackedSequence, Task


@dataclass(frozen=True)
class StepPart:
    """What one worker makes of a step."""

    sequences: dict[Task, dict[int, dict[str, Any]]]
    """By task and number of the row in the step: fields of the PackedSequence, tensors as arrays."""
    taken: dict[Task, dict[int, list[int]]]
    """By task, of the lanes that gave rows: samples taken from each source."""
    skipped: list[SkippedSample]


@dataclass(frozen=True)
class StepMaker:
    """Makes the parts of steps; pickled into loader processes."""

    streams: Mapping[Task, TaskStream]
    global_batch_size: Mapping[Task, int]
    first_sequence: Mapping[Task, int]
    """Rows of earlier steps."""
    replica: int
    num_replicas: int
    num_lanes: int

    def lanes(self, task: Task, first_sequence: int) -> dict[int, int]:
        """Of a step whose first row is `first_sequence`: lane by number of the row, for this replica's rows."""
        sequences = range(self.replica, self.global_batch_size[task], self.num_replicas)
        return {sequence: (first_sequence + sequence) % self.num_lanes for sequence in sequences}

    def parts(self, worker: int, num_workers: int) -> Iterator[StepPart]:
        """Endless: of each step what belongs to the lanes of `worker`."""
        first_sequence = dict(self.first_sequence)
        while True:
            part = StepPart(sequences={}, taken={}, skipped=[])
            for task, stream in self.streams.items():
                lanes = self.lanes(task, first_sequence[task])
                own = {
                    sequence: lane
                    for sequence, lane in lanes.items()
                    if lane // self.num_replicas % num_workers == worker
                }
                part.sequences[task] = {
                    sequence: _without_tensors(stream.next_sequence(lane)) for sequence, lane in own.items()
                }
                part.taken[task] = {lane: list(stream.counts[lane]) for lane in own.values()}
                part.skipped.extend(stream.skipped)
                stream.skipped.clear()
                first_sequence[task] += self.global_batch_size[task]
            yield part


class TrainingStream:
    """Rows of every task for one of `num_replicas` data-parallel ranks, step by step.

    Attributes:
        skipped_samples: the samples that were left out.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: TextTokenizer,
        *,
        codec: CodecSizes,
        global_batch_size: Mapping[Task, int],
        replica: int,
        num_replicas: int,
        folder: Path,
        seed: int,
        context: BaseContext | None = None,
        skipped_samples_folder: Path | None = None,
    ):
        """Opens the sources; loader processes start with the first step.

        Args:
            config: of the mixture.
            tokenizer: of the texts.
            codec: sizes of the image tokenizer, which samples' codes must fit.
            global_batch_size: of the whole job.
            replica: this rank among the data-parallel ones.
            num_replicas: their number.
            folder: what sources' folders are relative to.
            seed: of the order.
            context: how loader processes are started; needed where there are any.
            skipped_samples_folder: where samples that are left out are named.

        Raises:
            ConfigError: `num_replicas` does not divide the lanes or a task's rows per step, or a task has no source.
            ShardError: a source is missing or damaged.
        """
        for name, number in (
            ("data.num_lanes", config.num_lanes),
            *((f"rows of {t}", n) for t, n in global_batch_size.items()),
        ):
            if number % num_replicas:
                raise ConfigError(f"{name}={number} is not a multiple of the {num_replicas} data-parallel ranks")
        self.config, self.seed = config, seed
        self.global_batch_size = {task: number for task, number in global_batch_size.items() if number}
        self.replica, self.num_replicas, self.num_lanes = replica, num_replicas, config.num_lanes
        self.skipped_samples = SkippedSamples(
            skipped_samples_folder, replica=replica, max_share=config.max_skipped_share
        )
        self.step = 0
        self.first_sequence = dict.fromkeys(self.global_batch_size, 0)
        self._context, self._tokenizer, self._codec = context, tokenizer, codec
        self._mixtures = {
            task: _open_mixture(getattr(config, task), task, folder, num_lanes=config.num_lanes, seed=seed)
            for task in self.global_batch_size
        }
        self._taken = {
            task: {lane: [0] * len(mixture.sources) for lane in range(config.num_lanes)}
            for task, mixture in self._mixtures.items()
        }
        self._parts: Iterator[StepPart] | None = None
        self._num_taken_before = 0

    def next_step(self) -> dict[Task, list[PackedSequence]]:
        """This rank's rows of the next step, by task.

        Raises:
            SampleError: too many samples were left out.
            ShardError: a shard cannot be read.
            LoaderError: a loader process is gone, or hangs.
            StorageError: the skipped_samples's file cannot be written.
        """
        if self._parts is None:
            self._parts = self._make_parts()
        parts = [next(self._parts) for _ in range(max(self._num_workers, 1))]
        for part in parts:
            for task, lanes in part.taken.items():
                self._taken[task].update(lanes)
            self.skipped_samples.add(part.skipped)
        self.skipped_samples.check(self._num_taken() - self._num_taken_before)
        self.step += 1
        for task, number in self.global_batch_size.items():
            self.first_sequence[task] += number
        return {task: _joined([part.sequences[task] for part in parts]) for task in self.global_batch_size}

    def state(self) -> StreamState:
        """Where this replica's lanes stand after the steps that were taken, whatever is made ahead."""
        own = range(self.replica, self.num_lanes, self.num_replicas)
        return StreamState(
            seed=self.seed,
            num_lanes=self.num_lanes,
            step=self.step,
            first_sequence=self.first_sequence,
            sources={task: self._sources(task) for task in self._mixtures},
            taken={task: {lane: tuple(lanes[lane]) for lane in own} for task, lanes in self._taken.items()},
        )

    def restore(self, state: StreamState, *, origin: str) -> None:
        """Goes on from `state`, which has all lanes; the replicas and a step's rows may be others than then.

        Raises:
            CheckpointError: the state, read from `origin`, is of other data.
        """
        state.require_fits(self.state(), origin=origin)
        self.close()
        self.step, self.first_sequence = (
            state.step,
            {task: state.first_sequence[task] for task in self.global_batch_size},
        )
        for task, lanes in self._taken.items():
            lanes.update({lane: list(state.taken[task][lane]) for lane in range(self.num_lanes)})
        self._num_taken_before = self._num_taken()

    def close(self) -> None:
        """Ends the loader processes; the next step starts others."""
        if isinstance(self._parts, Generator):
            self._parts.close()
        self._parts = None

    @property
    def _num_workers(self) -> int:
        return min(self.config.num_workers, self.num_lanes // self.num_replicas)

    def _make_parts(self) -> Iterator[StepPart]:
        maker = self._maker()
        if not self._num_workers:
            return maker.parts(0, 1)
        assert self._context, "loader processes need to know how they are started"
        return prefetch(
            partial(_parts_on_one_thread, maker),
            num_workers=self._num_workers,
            context=self._context,
            ahead=self.config.prefetch_steps,
            timeout_seconds=self.config.worker_timeout_seconds,
        )

    def _maker(self) -> StepMaker:
        streams = {}
        for task, mixture in self._mixtures.items():
            streams[task] = TaskStream(self.config, task, mixture, self._tokenizer, self._codec, seed=self.seed)
            streams[task].restore([list(self._taken[task][lane]) for lane in range(self.num_lanes)])
        return StepMaker(
            streams=streams,
            global_batch_size=self.global_batch_size,
            first_sequence=dict(self.first_sequence),
            replica=self.replica,
            num_replicas=self.num_replicas,
            num_lanes=self.num_lanes,
        )

    def _num_taken(self) -> int:
        return sum(sum(counts) for lanes in self._taken.values() for counts in lanes.values())

    def _sources(self, task: Task) -> tuple[SourceState, ...]:
        configs: tuple[SourceConfig, ...] = getattr(self.config, task)
        return tuple(
            SourceState(
                folder=config.folder,
                recipe=source.manifest.recipe,
                samples=len(source),
                weight=config.weight,
                reader=config.reader,
            )
            for config, source in zip(configs, self._mixtures[task].sources, strict=True)
        )


def _parts_on_one_thread(maker: StepMaker, worker: int, num_workers: int) -> Iterator[StepPart]:
    """Runs in a loader process: many of them share the cores with the ranks."""
    torch.set_num_threads(1)
    yield from maker.parts(worker, num_workers)


def _open_mixture(configs: Sequence[SourceConfig], task: Task, folder: Path, *, num_lanes: int, seed: int) -> Mixture:
    if not configs:
        raise ConfigError(f"data.{task}: no source, yet the stage asks for rows of {task}; name one or ask for 0 rows")
    sources = [_open_source(config, task, folder) for config in configs]
    return Mixture(sources, [config.weight for config in configs], num_lanes=num_lanes, seed=seed)


def _open_source(config: SourceConfig, task: Task, folder: Path) -> ShardSource:
    place = config.folder if is_url(config.folder) else folder / config.folder
    return SequentialSource(place, task) if config.reader == "stream" else ShardSource(place, task)


def _without_tensors(sequence: PackedSequence) -> dict[str, Any]:
    """Arrays are pickled whole, while each tensor would take a file descriptor of its own to another process."""
    values = {field.name: getattr(sequence, field.name) for field in fields(sequence)}
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _joined(sequences: Sequence[Mapping[int, dict[str, Any]]]) -> list[PackedSequence]:
    """All workers' rows of a task in the order of the step."""
    by_number = {number: values for part in sequences for number, values in part.items()}
    return [_with_tensors(by_number[number]) for number in sorted(by_number)]


def _with_tensors(values: dict[str, Any]) -> PackedSequence:
    arrays = {name: torch.from_numpy(value) for name, value in values.items() if hasattr(value, "dtype")}
    return PackedSequence(**{**values, **arrays})
