"""Records that say the same as an earlier one.

    each record  ->  fingerprint: a hash of the image file, one of what it looks like, one of the text   (any process)
    all of them  ->  duplicates_of: for each record the first that it repeats; that one stays            (one process)

Exact duplicates have the same image file. Near ones look alike: their difference hashes are at most `max_distance` bits
apart. The hash is cut into 2 d blocks for a distance d, and d of them are the same in any two hashes that near; so each
choice of d blocks is a key (of 30 bits or more), and only records of one key are compared (Manku, Jain and Das Sarma,
"Detecting near-duplicates for web crawling", WWW 2007). Fingerprints take 32 bytes a record, the search about 90 more.

An image that comes again with another text is no duplicate unless the config says so: data sets of conversations and of
captions repeat images on purpose. Records without an image are duplicates when their texts are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count
from typing import NamedTuple

import numpy as np
import xxhash
from pydantic import Field

from data_prep.filtering.difference_hash import NO_PICTURE, difference_hash
from ufork.config import Config

FINGERPRINT_DTYPE = np.dtype([("exact_high", "<u8"), ("exact_low", "<u8"), ("looks", "<u8"), ("text", "<u8")])
"""Of an array of fingerprints, as `np.array(list_of_fingerprints, FINGERPRINT_DTYPE)` makes it."""

EXACT, NEAR = "exact duplicate", "near duplicate"
"""The reasons under which duplicates are counted."""

_HASH_BITS = 64
_LOW_64 = 2**64 - 1


class DuplicatesConfig(Config):
    """Which repetitions are left out."""

    exact: bool = False
    """Whether records with the same image file as an earlier one are dropped."""
    perceptual: bool = False
    """Whether records are dropped whose image looks like that of an earlier one; each image is decoded for it."""
    max_distance: int = Field(default=0, ge=0, le=4)
    """Bits of 64 in which the hashes of images that look alike may differ. 0 finds copies of another size or format, 2
    to 4 also most of those of another quality, and more and more of those that are merely similar."""
    same_text: bool = True
    """Whether a repetition must have the same text too. false keeps one record an image, whatever is said of it."""

    @property
    def wanted(self) -> bool:
        """Whether fingerprints are needed at all."""
        return self.exact or self.perceptual


class Fingerprint(NamedTuple):
    """Of one record: a row of FINGERPRINT_DTYPE."""

    exact_high: int
    exact_low: int
    looks: int
    text: int


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Over N records in record_index order."""

    originals: np.ndarray
    """int64 [N]: the number of the record that stays in place of this one; its own where it is kept."""
    near: np.ndarray
    """bool [N]: whether it is dropped because it looks like another, not for the same bytes."""

    @property
    def dropped(self) -> np.ndarray:
        """Whether each record is: bool [N]."""
        return self.originals != np.arange(len(self.originals))

    def reason(self, number: int) -> str | None:
        """Why a record is dropped; None for one that is kept."""
        if self.originals[number] == number:
            return None
        return NEAR if self.near[number] else EXACT


def fingerprint(image: bytes | None, text: str, config: DuplicatesConfig) -> Fingerprint:
    """Of one record.

    Args:
        image: the file's bytes; None for a record without one.
        text: all that is said, as `data_prep.filtering.filters.text_of` gives it.
        config: decides whether the image is decoded, and whether the text counts.
    """
    words = text.encode(errors="surrogatepass")
    # Another seed, so that no image is the same as a text.
    exact = xxhash.xxh3_128_intdigest(words, seed=1) if image is None else xxhash.xxh3_128_intdigest(image)
    looks = difference_hash(image) if config.perceptual and image is not None else NO_PICTURE
    said = xxhash.xxh3_64_intdigest(words) if config.same_text else 0
    return Fingerprint(exact >> 64, exact & _LOW_64, looks, said)


def duplicates_of(fingerprints: np.ndarray, config: DuplicatesConfig) -> Duplicates:
    """Finds the records that repeat an earlier one; a chain of near duplicates keeps its first only.

    Args:
        fingerprints: FINGERPRINT_DTYPE [N], in record_index order, made with the same config.
        config: which repetitions count.
    """
    own = np.arange(len(fingerprints))
    originals = own.copy()
    if config.exact:
        first, second = _equal(*(fingerprints[name] for name in ("exact_low", "exact_high", "text")))
        originals[second] = first
    exact = originals != own
    if config.perceptual:
        for first, second in _alike(fingerprints, config.max_distance):
            np.minimum.at(originals, second, first)
    while (originals[originals] != originals).any():
        originals = originals[originals]
    return Duplicates(originals=originals, near=(originals != own) & ~exact)


def _alike(fingerprints: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of earlier records, and of later ones that look like them."""
    numbers = np.flatnonzero(fingerprints["looks"] != NO_PICTURE)
    looks, text = fingerprints["looks"][numbers], fingerprints["text"][numbers]
    first, second = _equal(looks, text)
    yield numbers[first], numbers[second]
    # Of those with one hash the first stands for all, or a thousand copies would be half a million pairs.
    numbers, looks, text = (np.delete(column, second) for column in (numbers, looks, text))
    for mask in _masks(max_distance):
        for first, second in _pairs(looks & mask, text):
            near = np.bitwise_count(looks[first] ^ looks[second]) <= max_distance
            yield numbers[first[near]], numbers[second[near]]


def _masks(max_distance: int) -> list[np.uint64]:
    """The bits of each choice of half of the blocks; hashes within the distance are equal in one of them."""
    # The blocks are diagonals of the 8 x 8 bits: rows or columns would be the same in all images that are plain there.
    blocks = [0] * (2 * max_distance)
    for bit in range(_HASH_BITS if blocks else 0):
        blocks[(bit // 8 + bit % 8) % len(blocks)] |= 1 << bit
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, max_distance) if chosen]


def _equal(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that repeat an earlier one, as (the first of its kind, the row)."""
    order, starts = _runs(*columns)
    repeats = np.flatnonzero(starts != np.arange(len(starts)))
    return order[starts[repeats]], order[repeats]


def _pairs(*columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of equal rows as (earlier, later), in portions of at most N."""
    order, starts = _runs(*columns)
    later = np.arange(len(order))
    for step in count(1):
        later = later[later - starts[later] >= step]
        if not len(later):
            return
        yield order[later - step], order[later]


def _runs(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order in which equal rows are neighbours, the earlier first, and where the run of each begins in it."""
    order = np.lexsort(columns)
    begins = np.zeros(len(order), bool)
    for column in columns:
        ordered = column[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    return order, np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
