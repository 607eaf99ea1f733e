"""The packed sequences of each training step, for one data-parallel rank.

    Mixture -> TaskStream by lane -> shares of a step, made here or in loader processes -> a step and the new positions

A step takes one packed sequence from each lane in turn, and rank r of n has the lanes l with l mod n = r. Since n
divides the number of lanes and the number of sequences per step, sequence j of a step is on rank j mod n and is the
same for every n. In the same way each loader process serves different lanes, and their number changes no sequence.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from ufork.errors import SampleError
from ufork.processes.prefetch import prefetch
from ufork.redaction import redacted
from ufork.vocabulary import PackedSequence, Task


@dataclass(frozen=True)
class StepShare:
    """The packed sequences that one worker makes for a step."""

    sequences: dict[Task, dict[int, dict[str, Any]]]
    """Fields of each packed sequence, with arrays for tensors; by task and number of the sequence in the step."""
    taken: dict[Task, dict[int, list[int]]]
    """Number of samples taken from each source, by task and lane, for the lanes of this share."""
    skipped: list[SkippedSample]
    error: SampleError | None = None
    """Why the rest of the share could not be made."""


@dataclass(frozen=True)
class StepMaker:
    """Makes shares of steps; pickled into loader processes."""

    streams: Mapping[Task, TaskStream]
    global_batch_size: Mapping[Task, int]
    first_sequence: Mapping[Task, int]
    """Number of sequences in earlier steps, by task."""
    replica: int
    num_replicas: int
    num_lanes: int

    def lanes(self, task: Task, first_sequence: int) -> dict[int, int]:
        """Lane by number of the sequence in a step, for this replica's sequences of the step at `first_sequence`."""
        sequences = range(self.replica, self.global_batch_size[task], self.num_replicas)
        return {sequence: (first_sequence + sequence) % self.num_lanes for sequence in sequences}

    def shares(self, worker: int, num_workers: int) -> Iterator[StepShare]:
        """Yields without end, for each step, the sequences of the lanes of `worker`."""
        first_sequence = dict(self.first_sequence)
        while True:
            share = StepShare(sequences={}, taken={}, skipped=[])
            for task, stream in self.streams.items():
                lanes = self.lanes(task, first_sequence[task])
                own = {
                    sequence: lane
                    for sequence, lane in lanes.items()
                    if lane // self.num_replicas % num_workers == worker
                }
                try:
                    sequences = {
                        sequence: _without_tensors(stream.next_sequence(lane)) for sequence, lane in own.items()
                    }
                except SampleError as error:
                    yield replace(share, skipped=[*share.skipped, *stream.skipped], error=error)
                    return
                share.sequences[task] = sequences
                share.taken[task] = {lane: list(stream.counts[lane]) for lane in own.values()}
                share.skipped.extend(stream.skipped)
                stream.skipped.clear()
                first_sequence[task] += self.global_batch_size[task]
            yield share


class TrainingStream:
    """The packed sequences of every task for one data-parallel rank, step by step.

    Attributes:
        skipped_samples: the samples that were skipped.
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
            config: sources and packing.
            tokenizer: text tokenizer.
            codec: sizes of the image tokenizer, which the codes of samples must fit.
            global_batch_size: packed sequences per step over the whole job, of the tasks that have any.
            replica: index of this rank among the data-parallel ranks.
            num_replicas: number of data-parallel ranks; divides the lanes and the batch sizes.
            folder: folder that the sources' folders are relative to.
            seed: seed of the order of samples.
            context: how loader processes are started; required if `config.num_workers` > 0.
            skipped_samples_folder: folder of the files that list skipped samples; None for no files.

        Raises:
            ConfigError: a source has fewer samples than `config.num_lanes`.
            ShardError: a source is missing or damaged.
        """
        assert not any(number % num_replicas for number in (config.num_lanes, *global_batch_size.values()))
        self.config, self.seed = config, seed
        self.global_batch_size = dict(global_batch_size)
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
        self._shares: Iterator[StepShare] | None = None
        self._num_taken_before = 0

    def next_step(self) -> dict[Task, list[PackedSequence]]:
        """Returns this rank's packed sequences of the next step, by task.

        Raises:
            SampleError: too many samples were skipped.
            ShardError: a shard cannot be read.
            LoaderError: a loader process died, or hangs.
            StorageError: the file of skipped samples cannot be written.
        """
        if self._shares is None:
            self._shares = self._make_shares()
        shares = [next(self._shares) for _ in range(max(self._num_workers, 1))]
        for share in shares:
            for task, lanes in share.taken.items():
                self._taken[task].update(lanes)
            self.skipped_samples.add(share.skipped)
            if share.error:
                raise share.error
        self.skipped_samples.check(self._num_taken() - self._num_taken_before)
        self.step += 1
        for task, number in self.global_batch_size.items():
            self.first_sequence[task] += number
        return {task: _joined([share.sequences[task] for share in shares]) for task in self.global_batch_size}

    def state(self) -> StreamState:
        """Returns the position of this replica's lanes after the steps taken so far, without those made ahead."""
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
        """Resumes from `state`, which has all lanes; number of replicas and batch size may differ from those before.

        Raises:
            CheckpointError: the state, read from `origin`, belongs to other data.
        """
        state.require_fits(self.state(), origin=origin)
        state.require_complete(origin=origin)
        self.close()
        self.step, self.first_sequence = (
            state.step,
            {task: state.first_sequence[task] for task in self.global_batch_size},
        )
        for task, lanes in self._taken.items():
            lanes.update({lane: list(state.taken[task][lane]) for lane in range(self.num_lanes)})
        self._num_taken_before = self._num_taken()

    def close(self) -> None:
        """Kills the loader processes; the next step starts new ones."""
        if isinstance(self._shares, Generator):
            self._shares.close()
        self._shares = None

    @property
    def _num_workers(self) -> int:
        return self.config.num_workers

    def _make_shares(self) -> Iterator[StepShare]:
        maker = self._maker()
        if not self._num_workers:
            return maker.shares(0, 1)
        assert self._context, "loader processes need a context"
        return prefetch(
            partial(_shares_on_one_thread, maker),
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
                folder=redacted(config.folder),
                recipe=source.manifest.recipe,
                samples=len(source),
                weight=config.weight,
                reader=config.reader,
            )
            for config, source in zip(configs, self._mixtures[task].sources, strict=True)
        )


def _shares_on_one_thread(maker: StepMaker, worker: int, num_workers: int) -> Iterator[StepShare]:
    """Runs in a loader process; one thread, since loader processes and ranks share the cores."""
    torch.set_num_threads(1)
    yield from maker.shares(worker, num_workers)


def _open_mixture(configs: Sequence[SourceConfig], task: Task, folder: Path, *, num_lanes: int, seed: int) -> Mixture:
    sources = [_open_source(config, task, folder) for config in configs]
    return Mixture(sources, [config.weight for config in configs], num_lanes=num_lanes, seed=seed)


def _open_source(config: SourceConfig, task: Task, folder: Path) -> ShardSource:
    location = config.folder if is_url(config.folder) else folder / config.folder
    return SequentialSource(location, task) if config.reader == "stream" else ShardSource(location, task)


def _without_tensors(sequence: PackedSequence) -> dict[str, Any]:
    """Fields of a packed sequence, with arrays in place of tensors: arrays are pickled by value."""
    values = {field.name: getattr(sequence, field.name) for field in fields(sequence)}
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _joined(sequences: Sequence[Mapping[int, dict[str, Any]]]) -> list[PackedSequence]:
    """Joins all workers' sequences of a task, in the order of the step."""
    by_number = {number: values for share in sequences for number, values in share.items()}
    return [_with_tensors(by_number[number]) for number in sorted(by_number)]


def _with_tensors(values: dict[str, Any]) -> PackedSequence:
    arrays = {name: torch.from_numpy(value) for name, value in values.items() if hasattr(value, "dtype")}
    return PackedSequence(**{**values, **arrays})
