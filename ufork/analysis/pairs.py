"""Image-text pairs of finished sources, the same for every model that is analysed.

source folders -> samples in a seeded order -> pairs of codes and text, no two with the same text
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import ConfigError, SampleError
from ufork.vision.codec import ImageCodec
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

log = logging.getLogger(__name__)

CAPTION_QUESTION = "Describe the image."
"""Question of an understanding sample that is made from a caption."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """An image and a text that belong together."""

    id: str
    codes_YXC: np.ndarray
    """uint16, by the model's image tokenizer."""
    text: str

    def sample(self, task: Task, *, with_image: bool = True) -> Sample:
        """Returns the pair as a sample of `task`; understanding can do without the image."""
        sample = Sample(id=self.id, task=task, source="", licence="", codes=self.codes_YXC if with_image else None)
        if task is Task.GENERATION:
            return replace(sample, prompt=self.text)
        return replace(sample, turns=((CAPTION_QUESTION, self.text),))


def read_pairs(codec: ImageCodec, folders: Sequence[str], *, num_pairs: int, seed: int) -> list[Pair]:
    """Returns the first `num_pairs` pairs of all samples of `folders` in an order that `seed` decides.

    The text is a generation sample's prompt; if no source has generation samples, an understanding sample's answers.
    Samples without image or text, with an unreadable image, or with the text of an earlier pair are skipped, with one
    warning that counts them.

    Args:
        codec: encodes images that have no codes yet.
        folders: finished source folders, or their URLs.
        num_pairs: how many to return.
        seed: decides the order.

    Raises:
        ConfigError: there are fewer pairs.
        ShardError: a source is missing or damaged.
    """
    by_task = {task: [source for folder in folders if len(source := ShardSource(folder, task))] for task in Task}
    sources = by_task[Task.GENERATION] or by_task[Task.UNDERSTANDING]
    pairs: dict[str, Pair] = {}
    skipped: Counter[str] = Counter()
    for sample in _shuffled(sources, seed):
        try:
            pair = _pair_of(sample, codec)
            if pair.text in pairs:
                raise SampleError("its text is that of an earlier pair")
            pairs[pair.text] = pair
        except SampleError as error:
            skipped[error.reason] += 1
        if len(pairs) == num_pairs:
            break
    if skipped:
        reasons = "; ".join(f"{number:,}: {reason}" for reason, number in skipped.most_common())
        log.warning("pairs: %s samples skipped (%s)", f"{skipped.total():,}", reasons)
    if len(pairs) < num_pairs:
        raise ConfigError(
            f"num_pairs={num_pairs}: {', '.join(folders)}: only {len(pairs):,} pairs of an image and a text of its own;"
            " ask for fewer or name more source folders"
        )
    return list(pairs.values())


def _shuffled(sources: Sequence[ShardSource], seed: int) -> Iterator[Sample | SampleError]:
    """Yields every sample of all sources once."""
    ends = np.cumsum([len(source) for source in sources], dtype=np.int64)
    for number in np.random.default_rng(seed).permutation(int(ends[-1]) if len(ends) else 0):
        place = int(np.searchsorted(ends, number, side="right"))
        yield from sources[place].read([int(number - ends[place]) + len(sources[place])])


def _pair_of(sample: Sample | SampleError, codec: ImageCodec) -> Pair:
    if isinstance(sample, SampleError):
        raise sample
    text = sample.prompt if sample.task is Task.GENERATION else " ".join(answer for _, answer in sample.turns)
    if not text.strip():
        raise SampleError("it has no text")
    codes_YXC = sample.codes
    if codes_YXC is None:
        if sample.image is None:
            raise SampleError("it has no image")
        image = decode_image(sample.image, size_px=codec.config.image_px, purpose=sample.task)
        codes_YXC = np.asarray(codec.encode(image[None]))[0].astype(np.uint16)
    return Pair(id=sample.id, codes_YXC=codes_YXC, text=text)
