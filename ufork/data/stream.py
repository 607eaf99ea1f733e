"""The rows of each training step, for one data-parallel rank.

    Mixture -> lanes: draw, read, encode, pack -> rows of a task -> a step's rows, the same whatever the number of ranks

A step takes its rows from the lanes in turn, and rank r of n has the lanes l with l mod n = r. Since n divides the
number of lanes and the number of rows per step, row j of a step is on rank j mod n, and is the same row for every n.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ufork.data.config import DataConfig, SourceConfig
from ufork.data.mixture import Mixture
from ufork.data.packing import pack_row
from ufork.data.prompts import EncodedSample, drops_prompt, encode_sample, row_seed
from ufork.data.shards import ShardSource
from ufork.data.stream_state import SourceState, StreamState
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import ConfigError, SampleError
from ufork.vocabulary import PackedSequence, Task

log = logging.getLogger(__name__)


class TaskStream:
    """Rows of one task, by lane.

    Attributes:
        skipped: samples left out so far, by reason.
    """

    def __init__(self, config: DataConfig, task: Task, mixture: Mixture, tokenizer: TextTokenizer, *, seed: int):
        self.config, self.task, self.mixture, self.tokenizer, self.seed = config, task, mixture, tokenizer, seed
        self.skipped: Counter[str] = Counter()
        self.counts = [[0] * len(mixture.sources) for _ in range(mixture.num_lanes)]
        self._held: dict[int, EncodedSample] = {}  # by lane, the sample that did not fit into the last row

    def restore(self, counts: list[list[int]]) -> None:
        """Goes on after `counts` samples of each lane and source."""
        self.counts = counts
        self._held.clear()

    def next_row(self, lane: int) -> PackedSequence:
        """The next row of `lane`."""
        samples: list[EncodedSample] = []
        room = self.config.row_tokens
        while True:
            source, sample = self._next_sample(lane)
            if len(sample.token_ids_L) > room:
                self._held[lane] = sample
                break
            self.counts[lane][source] += 1
            room -= len(sample.token_ids_L)
            samples.append(sample)
        return pack_row(
            samples,
            row_tokens=self.config.row_tokens,
            padding_id=self.tokenizer.padding_id,
            seed=row_seed(self.seed, self.task, lane, sum(self.counts[lane])),
        )

    def _next_sample(self, lane: int) -> tuple[int, EncodedSample]:
        """The first sample from the lane's position on that can be used; only the skipped ones are counted as taken."""
        counts = self.counts[lane]
        for _ in range(sum(len(source) for source in self.mixture.sources)):
            draw = self.mixture.draw(lane, counts)
            if lane in self._held:
                return draw.source, self._held.pop(lane)
            try:
                return draw.source, self._encoded(draw.source, draw.index, draw.epoch)
            except SampleError as error:
                self._skip(error)
                counts[draw.source] += 1
        raise SampleError(f"{self.task}: no sample of the mixture can be used; skipped so far: {dict(self.skipped)}")

    def _encoded(self, source: int, index: int, epoch: int) -> EncodedSample:
        sample = self.mixture.sources[source][index]
        drop = drops_prompt(sample.id, epoch=epoch, seed=self.seed, share=self.config.prompt_dropout)
        encoded = encode_sample(sample, self.tokenizer, drop_prompt=drop and self.task is Task.GENERATION)
        if len(encoded.token_ids_L) > self.config.row_tokens:
            raise SampleError(
                f"{sample.id} ({len(encoded.token_ids_L)} tokens): does not fit into"
                f" data.row_tokens={self.config.row_tokens}"
            )
        return encoded

    def _skip(self, error: SampleError) -> None:
        reason = str(error).partition(": ")[2]  # before it stands which sample
        if not self.skipped[reason]:
            log.warning("sample skipped: %s (later ones like it are only counted)", error)
        self.skipped[reason] += 1


class TrainingStream:
    """Rows of every task for one of `num_replicas` data-parallel ranks, step by step.

    Raises:
        ConfigError: `num_replicas` does not divide the lanes or a task's rows per step, or a task has no source.
        ShardError: a source is missing or damaged.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: TextTokenizer,
        *,
        rows_per_step: Mapping[Task, int],
        replica: int,
        num_replicas: int,
        folder: Path,
        seed: int,
    ):
        for name, number in (
            ("data.num_lanes", config.num_lanes),
            *((f"rows of {t}", n) for t, n in rows_per_step.items()),
        ):
            if number % num_replicas:
                raise ConfigError(f"{name}={number} is not a multiple of the {num_replicas} data-parallel ranks")
        self.config, self.seed = config, seed
        self.rows_per_step = {task: number for task, number in rows_per_step.items() if number}
        self.replica, self.num_replicas, self.num_lanes = replica, num_replicas, config.num_lanes
        self.step = 0
        self.first_row = dict.fromkeys(self.rows_per_step, 0)
        self.streams = {}
        for task in self.rows_per_step:
            mixture = _open_mixture(getattr(config, task), task, folder, num_lanes=config.num_lanes, seed=seed)
            self.streams[task] = TaskStream(config, task, mixture, tokenizer, seed=seed)

    def next_step(self) -> dict[Task, list[PackedSequence]]:
        """This rank's rows of the next step, by task."""
        rows: dict[Task, list[PackedSequence]] = {}
        for task, number in self.rows_per_step.items():
            rows[task] = [self.streams[task].next_row(lane) for lane in self._lanes(task, number)]
            self.first_row[task] += number
        self.step += 1
        return rows

    def state(self) -> StreamState:
        """Where this replica's lanes stand."""
        return StreamState(
            seed=self.seed,
            num_lanes=self.num_lanes,
            step=self.step,
            first_row=self.first_row,
            sources={task: self._sources(task) for task in self.streams},
            taken={
                task: {lane: tuple(stream.counts[lane]) for lane in self._lanes(task, self.num_lanes)}
                for task, stream in self.streams.items()
            },
        )

    def _lanes(self, task: Task, number: int) -> list[int]:
        """Of the task's next `number` rows, the lanes of those that this replica reads."""
        rows = range(self.first_row[task] + self.replica, self.first_row[task] + number, self.num_replicas)
        return [row % self.num_lanes for row in rows]

    def _sources(self, task: Task) -> tuple[SourceState, ...]:
        configs: tuple[SourceConfig, ...] = getattr(self.config, task)
        return tuple(
            SourceState(folder=config.folder, recipe=source.manifest.recipe, samples=len(source), weight=config.weight)
            for config, source in zip(configs, self.streams[task].mixture.sources, strict=True)
        )

    def restore(self, state: StreamState, *, origin: str) -> None:
        """Goes on from `state`, which has all lanes; the replicas and a step's rows may be others than then.

        Raises:
            CheckpointError: the state, read from `origin`, is of other data.
        """
        state.require_fits(self.state(), origin=origin)
        self.step, self.first_row = state.step, {task: state.first_row[task] for task in self.streams}
        for task, stream in self.streams.items():
            stream.restore([list(state.taken[task][lane]) for lane in range(self.num_lanes)])

    @property
    def skipped(self) -> Counter[str]:
        """Samples left out so far, by reason."""
        return sum((stream.skipped for stream in self.streams.values()), Counter())


def _open_mixture(configs: Sequence[SourceConfig], task: Task, folder: Path, *, num_lanes: int, seed: int) -> Mixture:
    if not configs:
        raise ConfigError(f"data.{task}: no source, yet the stage asks for rows of {task}; name one or ask for 0 rows")
    sources = [ShardSource(folder / config.folder, task) for config in configs]
    return Mixture(sources, [config.weight for config in configs], num_lanes=num_lanes, seed=seed)
