"""What comes between a record and its samples: its image is read, and the filters say whether it stays.

Record  ->  Input.image  ->  Filters.judge  ->  Judged: image, verdict
"""

from dataclasses import dataclass

from data_prep.filtering.filters import FilterConfig, Filters, Verdict
from data_prep.inputs.record import Input, Record
from data_prep.sharding.sample_making import holds_codes
from ufork.errors import SampleError

UNREADABLE = "image cannot be read"


@dataclass(frozen=True)
class Judged:
    """A record's image, and what is thought of both."""

    image: bytes | None
    verdict: Verdict
    detail: str = ""
    """What exactly is wrong, where the verdict's reason does not say it all."""


class RecordFilter:
    """Reads and judges; one in each process."""

    def __init__(self, filters: FilterConfig, source: Input) -> None:
        """Loads what the filters need.

        Raises:
            ConfigError: as `Filters`.
        """
        self._filters, self._input = Filters(filters), source

    def judge(self, record: Record) -> Judged:
        """Of one record; an image that cannot be read is a reason like another."""
        try:
            image = None if record.image is None else self._input.image(record)
        except SampleError as error:
            return Judged(None, Verdict(reason=UNREADABLE), str(error))
        # Codes are no image whose header could be looked at.
        return Judged(image, self._filters.judge(record, None if image and holds_codes(image) else image))
