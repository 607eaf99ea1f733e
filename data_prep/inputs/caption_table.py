"""Tables of images and captions.

    X.csv, X.tsv, X.jsonl    rows of texts, images by path          place: (path below `images`,)
    X.parquet                the same, or images in the table       place: (file, row group, row in it)
        ->  Record(caption, image)

Parquet is read by pyarrow, which is imported for it alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.inputs.config import CaptionsConfig
from data_prep.inputs.files import ImageFiles, check_path, entries_of, matching_files
from data_prep.inputs.readers.delimited import delimited_rows
from data_prep.inputs.readers.json_stream import json_entries
from data_prep.inputs.record import Dropped, ImageLocation, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import licence_of, usable_caption
from ufork.errors import InputError, SampleError

if TYPE_CHECKING:
    from data_prep.inputs.readers.parquet import ParquetImages

_JSON_SUFFIXES = (".json", ".jsonl")
_SUFFIXES = (".parquet", ".csv", ".tsv", *_JSON_SUFFIXES)
_URL_COLUMNS = {"url", "image_url", "img_url"}
_URL_STARTS = ("http://", "https://")
_URL_REASON = "image is a URL"
_DOWNLOAD = (
    "ufork downloads nothing: img2dataset (output_format=webdataset) makes tars of such a table, "
    "which `ufork shard tars` reads"
)


class _Row(NamedTuple):
    values: Mapping[str, Any]
    embedded: tuple[int, int] | None = None
    """Row group and row in it of an image in the table."""


class CaptionTable:
    """Reads parquet, CSV, TSV and JSONL files of images and captions."""

    def __init__(self, config: CaptionsConfig) -> None:
        """Raises InputError when there are no such files, or no folder of images."""
        self._config = config
        self._files = matching_files(config.path, _SUFFIXES)
        self._images = (
            ImageFiles(config.images, max_bytes=config.max_image_bytes, follow_links=config.follow_links)
            if config.images
            else None
        )
        self._embedded = self._embedded_images()

    def records(self) -> Iterator[Record | Dropped]:
        """As `Input`: file by file, by name."""
        any_usable = False
        for file, number, row in entries_of(self._files, self._rows):
            for record in self._records(file, number, row):
                if isinstance(record, Record):
                    any_usable = True
                elif record.reason == _URL_REASON and not any_usable:
                    raise InputError(f"{self._files[file]}: its images are URLs; {_DOWNLOAD}")
                yield record

    def image(self, record: Record) -> bytes:
        """As `Input`."""
        assert record.image is not None, record.id
        path, *rest = record.image
        if rest:
            assert self._embedded is not None, record.id
            found = self._embedded.read(str(path), *map(int, rest))
            if isinstance(found, bytes):
                return found
            path = found
        if self._images is None:
            raise SampleError(f"{record.id}: its image is the file {path}; set input.images to the folder of images")
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
            rows: Iterator[Mapping[str, Any] | SkippedInput] = json_entries(path)
        else:
            rows = delimited_rows(path, self._config.column_names)
        checked = False
        for row in rows:
            if isinstance(row, SkippedInput):
                yield row
                continue
            if not checked:
                # What an object has not, is as if it were null: an id or a licence may be missing.
                self._check_columns(path, row, self._columns()[: 2 if suffix in _JSON_SUFFIXES else None])
                checked = True
            yield _Row(row)

    def _parquet_rows(self, path: Path) -> Iterator[_Row]:
        from data_prep.inputs.readers.arrow_values import holds_images
        from data_prep.inputs.readers.parquet import check_row_groups, parquet_rows, parquet_schema

        schema, image = parquet_schema(path), self._config.image_column
        self._check_columns(path, schema.names, self._columns())
        embedded = holds_images(schema.field(image).type)
        check_row_groups(path, self._config.max_row_group_mb)
        columns = [name for name in self._columns() if not (embedded and name == image)]
        for group, row, values in parquet_rows(path, columns):
            yield _Row(values, (group, row) if embedded else None)

    def _columns(self) -> list[str]:
        """Image and caption first."""
        config = self._config
        names = (config.image_column, config.caption_column, config.id_column, config.licence_column)
        return [name for name in names if name is not None]

    def _check_columns(self, path: Path, names: Iterable[str], wanted: Iterable[str]) -> None:
        names = list(names)
        for name in wanted:
            if name not in names:
                urls = f"; {_DOWNLOAD}" if _URL_COLUMNS & {known.lower() for known in names} else ""
                raise InputError(
                    f"{path}: has no column {name!r}, it has {names}; set input.image_column, "
                    f"input.caption_column, ...{urls}"
                )

    def _records(self, file: str, number: int, row: _Row | SkippedInput) -> Iterator[Record | Dropped]:
        if isinstance(row, SkippedInput):
            yield Dropped(entry_id(file, number), row.reason)
            return
        id = entry_id(file, number, row.values.get(self._config.id_column or ""))
        captions: Any = row.values.get(self._config.caption_column)
        several = isinstance(captions, list) and self._config.captions == "all" and len(captions) > 0
        for index, caption in enumerate(captions if several else [captions]):
            yield self._record(f"{id}#{index}" if several else id, caption, file, row)

    def _record(self, id: str, caption: Any, file: str, row: _Row) -> Record | Dropped:
        config = self._config
        try:
            return Record(
                id=id,
                image=(file, *row.embedded) if row.embedded else self._place(row.values),
                caption=usable_caption(caption, max_chars=config.max_text_chars),
                licence=licence_of(row.values, config.licence_column),
            )
        except SkippedInput as skip:
            return Dropped(id, skip.reason)

    def _place(self, values: Mapping[str, Any]) -> ImageLocation:
        path = values.get(self._config.image_column)
        if path is not None and not isinstance(path, str):
            raise SkippedInput("image path that is not text")
        if path and path.lower().startswith(_URL_STARTS):
            raise SkippedInput(_URL_REASON)
        if not path:
            raise SkippedInput("no image path")
        check_path(path)
        if self._images is None:
            raise InputError(
                f"{self._config.path}: its images are files; set input.images to the folder that they are in"
            )
        return (path,)
