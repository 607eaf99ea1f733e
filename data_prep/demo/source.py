"""The interface between `prepare` and the sources of synthetic samples."""

from typing import Any, Protocol

from ufork.data.shards.sample import Sample
from ufork.vocabulary import Task

SPLITS = ("train", "heldout")


class Source(Protocol):
    """Makes samples by number. Processes that build a source from the same config and seed make the same samples."""

    name: str
    licence: str
    attribution: str

    def num_samples(self, split: str, task: Task) -> int:
        """Returns the number of samples."""

    def sample(self, split: str, task: Task, number: int) -> Sample:
        """Makes one sample, independent of all others.

        Raises:
            SkippedInput: the sample cannot be made.
        """

    def skipped(self, split: str) -> dict[str, int]:
        """Counts inputs that were skipped before samples were numbered, by reason."""

    def recipe(self, split: str) -> dict[str, Any]:
        """Returns all that the samples of `split` depend on, as JSON values. Shards of an equal recipe are kept."""

    def details(self) -> dict[str, Any]:
        """Returns what users of the shards need to know, as JSON values."""
