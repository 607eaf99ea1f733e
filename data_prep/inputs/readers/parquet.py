"""Reads parquet files of texts and images: first the texts in order without the images, later images by row.

X.parquet                -> parquet_rows  -> row group, row in the group, texts
file, row group, row     -> ParquetImages -> bytes; the last row group is cached for neighbouring images
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.inputs.class_names import first_name
from data_prep.inputs.config import MEBIBYTE
from data_prep.inputs.readers.arrow_values import image_or_path, python_rows
from ufork.errors import InputError, SampleError

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 64, 2**26
_FEATURES = b"huggingface"
_BUFFER_BYTES = 2**20


def parquet_schema(path: Path) -> pa.Schema:
    """Reads the schema of the file `path`.

    Raises:
        InputError: the file is not readable as parquet.
    """
    with _opened(path) as file:
        return file.schema_arrow


def class_names_in(schema: pa.Schema, column: str) -> dict[str, str]:
    """Returns the names, by number, of a column of `datasets.ClassLabel`; empty if the file does not say so."""
    try:
        features = json.loads((schema.metadata or {})[_FEATURES])["info"]["features"]
        return {str(number): first_name(name) for number, name in enumerate(features[column]["names"])}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def check_row_groups(path: Path, max_mb: float) -> None:
    """Raises InputError if a row group of the file `path` has more than `max_mb` MiB."""
    with _opened(path) as file:
        for number in range(file.num_row_groups):
            # Not per column: pyarrow aborts the process if the metadata of a column are damaged.
            size = file.metadata.row_group(number).total_byte_size
            if size > max_mb * MEBIBYTE:
                raise InputError(
                    f"{path}: row group {number} has {size // MEBIBYTE} MiB, expected at most {max_mb:g} since it is "
                    "read at once; write the file with a smaller row_group_size, or raise input.max_row_group_mb"
                )


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yields row group, row in the group and the values of `columns`, in the order of the file.

    Raises:
        InputError: the file is damaged.
    """
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            row, metadata = 0, file.metadata.row_group(group)
            row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
            num_rows = min(_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE // row_bytes))
            for batch in file.iter_batches(num_rows, row_groups=[group], columns=columns, use_threads=False):
                for values in python_rows(batch):
                    yield group, row, values
                    row += 1


class ParquetImages:
    """Reads images from a column of parquet files."""

    def __init__(self, files: Mapping[str, Path], column: str, *, max_image_bytes: int) -> None:
        """`files`: paths by the names that image locations use."""
        self._files = files
        self._column = column
        self._max_image_bytes = max_image_bytes
        self._group = lru_cache(1)(self._read_group)

    def read(self, file: str, group: int, row: int) -> bytes | str:
        """Returns the image file, or the path that the table has instead.

        Raises:
            SampleError: there is neither, the image is too large, or the file is damaged.
        """
        where = f"{self._files[file]}: row {row} of group {group}"
        try:
            value = self._group(file, group)[row]
        except (IndexError, InputError) as error:
            raise SampleError("image in a damaged part of the table", detail=str(error), sample=where) from None
        return image_or_path(value, max_bytes=self._max_image_bytes, where=where)

    def _read_group(self, file: str, group: int) -> pa.ChunkedArray:
        with _opened(self._files[file]) as opened:
            return opened.read_row_group(group, columns=[self._column], use_threads=False).column(0)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens the file `path`; raises InputError for damage found while it is open."""
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as parquet ({error})") from None
