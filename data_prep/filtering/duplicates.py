"""Finds records that repeat an earlier record.

    each record       ->  fingerprint: hash of the image file, perceptual hash, hash of the text     (in any process)
    all fingerprints  ->  duplicates_of: for each record the first one that it repeats, which stays  (in one process)

Exact duplicates have the same image file. Near duplicates look alike: their difference hashes differ in at most
`max_distance` bits. For a distance d the hash is cut into 2 d blocks; two hashes that differ in at most d bits agree in
at least d blocks. So each choice of d blocks is a key of 30 bits or more, and only records with equal keys are compared
(Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007). A fingerprint takes 32 bytes, the
search about 90 more per record.

By default an image repeated with another text is no duplicate: caption and conversation data sets repeat images on
purpose. Records without an image are duplicates if their texts are equal.
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

FINGERPRINT_DTYPE = np.dtype([("exact_high", "<u8"), ("exact_low", "<u8"), ("perceptual", "<u8"), ("text", "<u8")])
"""Dtype of an array of fingerprints: `np.array(list_of_fingerprints, FINGERPRINT_DTYPE)`."""

EXACT, NEAR = "exact duplicate", "near duplicate"
"""The reasons under which duplicates are counted."""

_HASH_BITS = 64
_LOW_64 = 2**64 - 1


class DuplicatesConfig(Config):
    """Settings of the search for duplicates, which are dropped."""

    exact: bool = False
    """Drops records with the same image file as an earlier one."""
    perceptual: bool = False
    """Drops records whose image looks like that of an earlier one. Each image is decoded for this."""
    max_distance: int = Field(default=0, ge=0, le=4)
    """Bits of 64 in which the hashes of near duplicates may differ. 0 finds copies of another size or format; 2 to 4
    find most copies of another quality, and increasingly images that are only similar."""
    same_text: bool = True
    """Whether duplicates must also have the same text. false keeps one record per image, regardless of its text."""

    @property
    def wanted(self) -> bool:
        """Whether duplicates are searched at all, so that fingerprints are needed."""
        return self.exact or self.perceptual


class Fingerprint(NamedTuple):
    """Fingerprint of one record: an element of FINGERPRINT_DTYPE."""

    exact_high: int
    """Upper 64 bits of the image file's hash, or of the text's for a record without an image."""
    exact_low: int
    """Lower 64 bits."""
    perceptual: int
    """Difference hash of the image; NO_PICTURE if not needed or not known."""
    text: int
    """Hash of the text; 0 if the text does not count."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """The duplicates among N records, in the order of the record index."""

    originals: np.ndarray
    """int64 [N]: number of the record that is kept in place of this one; its own number if it is kept."""
    near: np.ndarray
    """bool [N]: whether the record is dropped as a near duplicate rather than an exact one."""

    @property
    def dropped(self) -> np.ndarray:
        """Whether each record is dropped: bool [N]."""
        return self.originals != np.arange(len(self.originals))

    def reason(self, number: int) -> str | None:
        """Returns EXACT or NEAR for a record that is dropped, None for one that is kept."""
        if self.originals[number] == number:
            return None
        return NEAR if self.near[number] else EXACT


def fingerprint(image: bytes | None, text: str, config: DuplicatesConfig) -> Fingerprint:
    """Returns the fingerprint of one record.

    Args:
        image: bytes of the image file; None for a record without one.
        text: all text of the record, as returned by `data_prep.filtering.filters.text_of`.
        config: decides whether the image is decoded, and whether the text counts.
    """
    text_bytes = text.encode(errors="surrogatepass")
    # Another seed, so that a text never equals an image file of the same bytes.
    exact = xxhash.xxh3_128_intdigest(text_bytes, seed=1) if image is None else xxhash.xxh3_128_intdigest(image)
    perceptual = difference_hash(image) if config.perceptual and image is not None else NO_PICTURE
    text_hash = xxhash.xxh3_64_intdigest(text_bytes) if config.same_text else 0
    return Fingerprint(exact >> 64, exact & _LOW_64, perceptual, text_hash)


def duplicates_of(fingerprints: np.ndarray, config: DuplicatesConfig) -> Duplicates:
    """Finds the records that repeat an earlier one. Of a chain of near duplicates only the first is kept.

    Args:
        fingerprints: FINGERPRINT_DTYPE [N], in the order of the record index, made with the same config.
        config: which duplicates count.
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
    """Yields the numbers of earlier records, and of later records that look like them."""
    numbers = np.flatnonzero(fingerprints["perceptual"] != NO_PICTURE)
    hashes, text = fingerprints["perceptual"][numbers], fingerprints["text"][numbers]
    first, second = _equal(hashes, text)
    yield numbers[first], numbers[second]
    # Only the first record of each hash is compared further: a thousand copies would be half a million pairs.
    numbers, hashes, text = (np.delete(column, second) for column in (numbers, hashes, text))
    for mask in _masks(max_distance):
        for first, second in _pairs(hashes & mask, text):
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= max_distance
            yield numbers[first[near]], numbers[second[near]]


def _masks(max_distance: int) -> list[np.uint64]:
    """Returns a bit mask for each choice of half of the blocks. Hashes within the distance agree under at least one."""
    # Blocks are diagonals of the 8 x 8 bits: rows or columns would be equal in all images that are plain there.
    blocks = [0] * (2 * max_distance)
    for bit in range(_HASH_BITS if blocks else 0):
        blocks[(bit // 8 + bit % 8) % len(blocks)] |= 1 << bit
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, max_distance) if chosen]


def _equal(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the table rows that equal an earlier one, as (first row with these values, row)."""
    order, starts = _runs(*columns)
    repeats = np.flatnonzero(starts != np.arange(len(starts)))
    return order[starts[repeats]], order[repeats]


def _pairs(*columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all pairs of equal table rows as (earlier, later), in chunks of at most N pairs."""
    order, starts = _runs(*columns)
    later = np.arange(len(order))
    for step in count(1):
        later = later[later - starts[later] >= step]
        if not len(later):
            return
        yield order[later - step], order[later]


def _runs(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns an order in which equal table rows are neighbours, earlier first, and where the run of each begins."""
    order = np.lexsort(columns)
    begins = np.zeros(len(order), bool)
    for column in columns:
        ordered = column[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    return order, np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
