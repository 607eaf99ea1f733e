"""Packed sequences of random codes and texts, as long as real ones."""

from dataclasses import dataclass

import numpy as np

from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample
from ufork.model.config import Dimensions
from ufork.vocabulary import IGNORED_LABEL, PackedSequence, Task


@dataclass(frozen=True, kw_only=True)
class RandomSequences:
    """Makes packed sequences of samples with one image and a text of random length each."""

    dimensions: Dimensions
    seq_len: int
    image_positions: int = 64
    """Positions of an image, besides its two marks."""
    text_tokens: tuple[int, int] = (10, 40)
    """Fewest tokens of a sample's text, and one more than the most; an understanding sample's last third is to be
    predicted."""

    def sequence(self, task: Task, rng: np.random.Generator, *, num_samples: int | None = None) -> PackedSequence:
        """Returns a packed sequence with as many samples as it takes, at least one, or of `num_samples` exactly."""
        if num_samples is not None:
            samples = [self._sample(task, rng) for _ in range(num_samples)]
            return pack_sequence(samples, seq_len=sum(len(each.token_ids_L) for each in samples), padding_id=0)
        samples = [self._sample(task, rng)]
        room = self.seq_len - len(samples[0].token_ids_L)
        while len((sample := self._sample(task, rng)).token_ids_L) <= room:
            samples.append(sample)
            room -= len(sample.token_ids_L)
        return pack_sequence(samples, seq_len=self.seq_len, padding_id=0)

    def _sample(self, task: Task, rng: np.random.Generator) -> EncodedSample:
        num_text = int(rng.integers(*self.text_tokens))
        token_ids_L = rng.integers(0, self.dimensions.vocab_size, num_text + self.image_positions + 2)
        labels_L = np.full(len(token_ids_L), IGNORED_LABEL, np.int64)
        if task is Task.UNDERSTANDING:
            labels_L[-num_text // 3 - 1 : -1] = token_ids_L[-num_text // 3 :]
        shape = (self.image_positions, self.dimensions.codes_per_position)
        return EncodedSample(
            id="random",
            task=task,
            token_ids_L=token_ids_L,
            labels_L=labels_L,
            image_begin=0 if task is Task.UNDERSTANDING else num_text,
            codes_IC=rng.integers(0, self.dimensions.codebook_size, shape),
        )
