"""Packed sequences of one task, lane by lane.

    Mixture -> a block of samples ahead of each lane -> encode -> pack -> packed sequences, and the samples skipped

Which samples a lane has taken is all of its state.
"""

from collections import deque
from dataclasses import dataclass

from ufork.data.config import DataConfig
from ufork.data.mixture import Draw, Mixture
from ufork.data.packing import pack_sequence
from ufork.data.prompts import CodecSizes, EncodedSample, drops_prompt, encode_sample, sequence_seed
from ufork.data.shards.sample import Sample
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import SampleError
from ufork.vocabulary import PackedSequence, Task

BLOCK_SAMPLES = 32
"""Samples of a lane that are read at once."""
MAX_UNUSABLE_IN_A_ROW = 10_000
"""Samples of one lane that may be skipped between two that are used: some seconds of reading. Since samples are
shuffled, only a source in which next to none can be used has more."""


@dataclass(frozen=True)
class SkippedSample:
    """One sample that could not be used, and why; the fields are those of SampleError."""

    task: Task
    source: str
    """Name of its source in the mixture."""
    sample: str
    reason: str
    detail: str


class TaskStream:
    """Packed sequences of one task, by lane.

    Attributes:
        counts: samples that each lane took from each source, including skipped ones.
        skipped: samples skipped since the list was last cleared.
    """

    def __init__(
        self,
        config: DataConfig,
        task: Task,
        mixture: Mixture,
        tokenizer: TextTokenizer,
        codec: CodecSizes,
        *,
        seed: int,
    ):
        self.config, self.task, self.mixture = config, task, mixture
        self.tokenizer, self.codec, self.seed = tokenizer, codec, seed
        self.skipped: list[SkippedSample] = []
        self.restore([[0] * len(mixture.sources) for _ in range(mixture.num_lanes)])

    def restore(self, counts: list[list[int]]) -> None:
        """Continues after `counts[lane][source]` samples of each lane and source."""
        self.counts = counts
        self._ahead: dict[int, deque[tuple[Draw, Sample | SampleError]]] = {}
        self._next: dict[int, EncodedSample] = {}  # by lane: the first sample ahead, once it is encoded

    def next_sequence(self, lane: int) -> PackedSequence:
        """Packs the next samples of `lane`.

        Raises:
            SampleError: of twice as many samples as the mixture has, or of MAX_UNUSABLE_IN_A_ROW, none could be used.
            ShardError: a shard cannot be read.
        """
        samples: list[EncodedSample] = []
        room = self.config.seq_len
        while len((sample := self._peek(lane)).token_ids_L) <= room:
            self._take(lane)
            samples.append(sample)
            room -= len(sample.token_ids_L)
        return pack_sequence(
            samples,
            seq_len=self.config.seq_len,
            padding_id=self.tokenizer.padding_id,
            seed=sequence_seed(self.seed, self.task, lane, sum(self.counts[lane])),
        )

    def _peek(self, lane: int) -> EncodedSample:
        """Returns the lane's next usable sample without taking it; takes and records the unusable ones before it."""
        all_of_them = 2 * sum(len(source) for source in self.mixture.sources)  # one epoch's last, the next one's first
        for _ in range(min(all_of_them, MAX_UNUSABLE_IN_A_ROW)):
            if lane not in self._next:
                draw, sample = self._first_ahead(lane)
                try:
                    self._next[lane] = self._encoded(sample, draw.epoch)
                except SampleError as error:
                    source = self.mixture.sources[draw.source].name
                    self.skipped.append(SkippedSample(self.task, source, error.sample, error.reason, error.detail))
                    self._take(lane)
                    continue
            return self._next[lane]
        examples = {skipped.reason: skipped.sample for skipped in self.skipped}
        reasons = "; ".join(f"{reason} ({sample})" for reason, sample in sorted(examples.items()))
        raise SampleError(f"{self.task}: no sample of the mixture can be used, or next to none: {reasons}")

    def _take(self, lane: int) -> None:
        draw, _ = self._ahead[lane].popleft()
        self._next.pop(lane, None)
        self.counts[lane][draw.source] += 1

    def _first_ahead(self, lane: int) -> tuple[Draw, Sample | SampleError]:
        ahead = self._ahead.setdefault(lane, deque())
        if not ahead:
            draws = self.mixture.draws(lane, self.counts[lane], BLOCK_SAMPLES)
            ahead.extend(zip(draws, self.mixture.read(draws), strict=True))
        return ahead[0]

    def _encoded(self, sample: Sample | SampleError, epoch: int) -> EncodedSample:
        if isinstance(sample, SampleError):
            raise sample
        drop = drops_prompt(sample.id, epoch=epoch, seed=self.seed, share=self.config.prompt_dropout)
        return encode_sample(
            sample,
            self.tokenizer,
            seq_len=self.config.seq_len,
            codec=self.codec,
            drop_prompt=drop and self.task is Task.GENERATION,
            compatibility=self.config.compatibility,
        )
