"""What a source of samples offers to `prepare`, whatever it is made from."""

from typing import Any, Protocol

from ufork.data.shards.sample import Sample
from ufork.vocabulary import Task

SPLITS = ("train", "heldout")


class Source(Protocol):
    """Samples by number; any process that builds the source from the same config and seed makes the same ones."""

    name: str
    licence: str
    attribution: str

    def num_samples(self, split: str, task: Task) -> int:
        """How many numbers there are."""

    def sample(self, split: str, task: Task, number: int) -> Sample:
        """Makes one sample, whichever others were made before.

        Raises:
            SkippedInput: what it should be made from is unusable.
        """

    def skipped(self, split: str) -> dict[str, int]:
        """Inputs that were left out before they got a number, by reason."""

    def recipe(self, split: str) -> dict[str, Any]:
        """All that the samples of `split` depend on, as JSON-able values: shards of an equal recipe are kept."""

    def details(self) -> dict[str, Any]:
        """What users of the shards need to know, as JSON-able values."""
