"""Reads tables of images and captions.

    X.csv, X.tsv, X.jsonl    images by path                         image location: (path below `images`,)
    X.parquet                images by path, or in the table        image location: (file, row group, row in the group)
        ->  Record(caption, image)

pyarrow is imported only to read parquet.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.inputs.base64_images import is_base64_image
from data_prep.inputs.class_names import class_name_of, read_class_names
from data_prep.inputs.config import CaptionsConfig
from data_prep.inputs.files import ImageFiles, check_path, entries_of, matching_files
from data_prep.inputs.readers.delimited import delimited_rows
from data_prep.inputs.readers.json_stream import json_entries
from data_prep.inputs.record import Dropped, ImageLocation, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import column_of, field_of, licence_of, list_in, usable_caption
from ufork.errors import InputError, SampleError

if TYPE_CHECKING:
    from data_prep.inputs.readers.parquet import ParquetImages

_JSON_SUFFIXES = (".json", ".jsonl")
_SUFFIXES = (".parquet", ".csv", ".tsv", *_JSON_SUFFIXES)
_URL_COLUMNS = {"url", "image_url", "img_url"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL_REASON = "image is a URL"
_CHECKED_ENTRIES = 16
_DOWNLOAD = (
    "ufork downloads nothing: img2dataset (output_format=webdataset) downloads such a table into tars, "
    "which `ufork shard tars` reads"
)

_Entry = Mapping[str, Any] | SkippedInput
_logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    values: Mapping[str, Any]
    place: tuple[int, int] | None = None
    """Row group and row in the group, in parquet, from which an image can be read again."""
    embedded: bool = False
    """Whether the image column, which `values` lacks then, holds images by its type."""
    class_names: Mapping[str, str] = {}
    """Names of the classes in the file."""


class CaptionTable:
    """Reads parquet, CSV, TSV and JSONL files of images and captions."""

    def __init__(self, config: CaptionsConfig) -> None:
        """Raises InputError if there are no such files, or the image folder does not exist."""
        self._config = config
        self._files = matching_files(config.path, _SUFFIXES)
        self._images = (
            ImageFiles(config.images, max_bytes=config.max_image_bytes, follow_links=config.follow_links)
            if config.images
            else None
        )
        self._embedded = self._embedded_images()
        self._warned_of_numbers = False
        self._names = read_class_names(config.class_names) if config.class_names else {}

    def records(self) -> Iterator[Record | Dropped]:
        """Implements `Input`: file by file in order of their names."""
        any_usable = False
        for file, number, row in entries_of(self._files, self._rows):
            for record in self._records(file, number, row):
                if isinstance(record, Record):
                    any_usable = True
                elif record.reason == _URL_REASON and not any_usable:
                    raise InputError(f"{self._files[file]}: the images are URLs; {_DOWNLOAD}")
                yield record

    def image(self, record: Record) -> bytes:
        """Implements `Input`."""
        assert record.image is not None, record.id
        path, *rest = record.image
        if rest:
            assert self._embedded is not None, record.id
            found = self._embedded.read(str(path), *map(int, rest))
            if isinstance(found, bytes):
                return found
            path = found
        if self._images is None:
            raise SampleError(
                "image is a file; set input.images to the folder of images", sample=f"{record.id}: {path}"
            )
        return self._images.read(str(path))

    def _embedded_images(self) -> "ParquetImages | None":
        if not any(path.suffix.lower() == ".parquet" for path in self._files.values()):
            return None
        from data_prep.inputs.readers.parquet import ParquetImages

        config = self._config
        return ParquetImages(self._files, config.image_column, max_image_bytes=config.max_image_bytes)

    def _rows(self, path: Path) -> Iterator[_Row | SkippedInput]:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            yield from self._parquet_rows(path)
            return
        if suffix in _JSON_SUFFIXES:
            entry_keys = [name.partition(".")[0] for name in self._columns()[:2]]
            rows = self._with_columns(path, json_entries(path, entry_keys))
        else:
            check = partial(self._check_columns, path, wanted=self._columns())
            rows = delimited_rows(path, self._config.column_names, check)
        yield from (row if isinstance(row, SkippedInput) else _Row(row) for row in rows)

    def _with_columns(self, path: Path, entries: Iterator[_Entry]) -> Iterator[_Entry]:
        """Yields the entries of a JSON file after a check that those of image and text occur among the first ones.

        Entries may lack any of the keys, which then count as null.
        """
        first = list(islice(entries, _CHECKED_ENTRIES))
        names = list(dict.fromkeys(name for entry in first if isinstance(entry, Mapping) for name in entry))
        if names:
            self._check_columns(path, names, wanted=self._columns()[:2])
        yield from chain(first, entries)

    def _parquet_rows(self, path: Path) -> Iterator[_Row]:
        from data_prep.inputs.readers.arrow_values import holds_images
        from data_prep.inputs.readers.parquet import check_row_groups, class_names_in, parquet_rows, parquet_schema

        schema, image = parquet_schema(path), self._config.image_column
        self._check_columns(path, schema.names, wanted=self._columns())
        embedded = holds_images(schema.field(image).type)
        check_row_groups(path, self._config.max_row_group_mb)
        columns = [column_of(name, schema.names) for name in self._columns() if not (embedded and name == image)]
        names = class_names_in(schema, self._config.label_column) if self._config.label_column else {}
        for group, row, values in parquet_rows(path, list(dict.fromkeys(columns))):
            yield _Row(values, (group, row), embedded, names)

    def _columns(self) -> list[str]:
        """Returns the configured columns, those of image and text first."""
        config = self._config
        text = config.label_column or config.caption_column
        return [name for name in (config.image_column, text, config.id_column, config.licence_column) if name]

    def _check_columns(self, path: Path, names: Iterable[str], *, wanted: Iterable[str]) -> None:
        names = list(names)
        for name in wanted:
            column = name if name == self._config.image_column else column_of(name, names)
            if names.count(column) > 1:
                raise InputError(f"{path}: has several columns {column!r}; rename all but one of them")
            if column not in names:
                urls = f"; {_DOWNLOAD}" if _URL_COLUMNS & {known.lower() for known in names} else ""
                raise InputError(
                    f"{path}: has no column {name!r}, only {names}; set input.image_column, "
                    f"input.caption_column, ...{urls}"
                )

    def _records(self, file: str, number: int, row: _Row | SkippedInput) -> Iterator[Record | Dropped]:
        if isinstance(row, SkippedInput):
            yield Dropped(entry_id(file, number), row.reason)
            return
        own_id = row.values.get(self._config.id_column) if self._config.id_column else None
        id = entry_id(file, number, own_id)
        if self._config.label_column:
            yield self._record(id, "", file, row)
            return
        caption = field_of(row.values, self._config.caption_column)
        captions = (list_in(caption) if self._config.captions == "all" else None) or []
        for index, one in enumerate(captions or [caption]):
            yield self._record(f"{id}#{index}" if captions else id, one, file, row)

    def _record(self, id: str, caption: Any, file: str, row: _Row) -> Record | Dropped:
        config = self._config
        try:
            return Record(
                id=id,
                image=(file, *row.place) if row.place and row.embedded else self._image_location(file, row),
                caption="" if config.label_column else usable_caption(caption, max_chars=config.max_text_chars),
                class_name=self._class_name(row) if config.label_column else "",
                licence=licence_of(row.values, config.licence_column),
            )
        except SkippedInput as skip:
            return Dropped(id, skip.reason)

    def _class_name(self, row: _Row) -> str:
        value = field_of(row.values, self._config.label_column or "")
        names = self._names or row.class_names or None
        if names is None and isinstance(value, int | float) and not self._warned_of_numbers:
            self._warned_of_numbers = True
            _logger.warning("%s: its classes are numbers; name them by input.class_names", self._config.path)
        return class_name_of(value, names, max_chars=self._config.max_text_chars)

    def _image_location(self, file: str, row: _Row) -> ImageLocation:
        path = row.values.get(self._config.image_column)
        if isinstance(path, list) and all(isinstance(item, str | Mapping) for item in path):
            if len(path) > 1:
                raise SkippedInput("more than one image")
            path = path[0] if path else None
        if isinstance(path, Mapping):
            path = path.get("path")
        if isinstance(path, str) and is_base64_image(path):
            if row.place is None:
                raise SkippedInput("image in base64; such tables are read as parquet only")
            return (file, *row.place)
        if path is not None and not isinstance(path, str):
            raise SkippedInput("image path that is not text")
        if path and _URL.match(path):
            raise SkippedInput(_URL_REASON)
        if not path:
            raise SkippedInput("no image path")
        check_path(path)
        if self._images is None:
            raise InputError(f"{self._config.path}: the images are files; set input.images to the folder of images")
        return (path,)
