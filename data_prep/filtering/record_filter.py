"""Reads the image of a record and filters both.

Record  ->  Input.image  ->  Filters.check  ->  FilteredRecord: image, result
"""

from dataclasses import dataclass

from data_prep.filtering.filters import FilterConfig, FilterResult, Filters
from data_prep.inputs.record import Input, Record
from ufork.data.shards.sample import holds_codes
from ufork.errors import SampleError


@dataclass(frozen=True)
class FilteredRecord:
    """A record's image and the result of the filters."""

    image: bytes | None
    result: FilterResult
    detail: str = ""
    """The exact error, where `result.reason` does not say it all."""


class RecordFilter:
    """Reads and filters records. Build one in each process."""

    def __init__(self, filters: FilterConfig, source: Input) -> None:
        """Loads what the filters need.

        Raises:
            ConfigError: as `Filters`.
        """
        self._filters, self._input = Filters(filters), source

    def apply(self, record: Record) -> FilteredRecord:
        """Filters one record. An image that cannot be read is a reason to drop it, not an error."""
        try:
            image = None if record.image is None else self._input.image(record)
        except SampleError as error:
            return FilteredRecord(None, FilterResult(reason=error.reason), str(error))
        # Codes (.npy) have no image header to check.
        return FilteredRecord(image, self._filters.check(record, None if image and holds_codes(image) else image))
