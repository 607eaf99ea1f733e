"""Reads datasets saved to disk by the package `datasets`.

    dataset.save_to_disk(FOLDER)  ->  Record(caption, class_name, turns, image)       image location: (row,)

Arrow files are memory-mapped. `load_from_disk` neither accesses the network nor runs a dataset's script.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.inputs.class_names import class_name_of, first_name, read_class_names
from data_prep.inputs.config import HuggingFaceConfig
from data_prep.inputs.dialogue import SYSTEM_KEYS, read_dialogue, system_of
from data_prep.inputs.files import ImageFiles
from data_prep.inputs.readers.arrow_values import holds_images, image_or_path, is_list, python_rows
from data_prep.inputs.record import Dropped, Record, entry_id
from data_prep.inputs.skipped_input import SkippedInput
from data_prep.inputs.text import column_of, field_of, licence_of, usable_caption
from ufork.errors import InputError, SampleError

_ROWS_AT_ONCE = 1000

_logger = logging.getLogger(__name__)


class HuggingFaceDataset:
    """Reads the folder of a saved dataset."""

    def __init__(self, config: HuggingFaceConfig) -> None:
        """Raises InputError if there is no saved dataset, or it lacks a configured split or column."""
        self._config = config
        self._dataset = _split_of(_loaded(config), config)
        self._check_columns()
        self._images = self._dataset.select_columns(self._image_columns())
        self._files = ImageFiles(config.path, max_bytes=config.max_image_bytes, follow_links=False)
        self._names = self._class_names()
        self._text_columns = self._columns_of_text()
        if config.conversations_column is not None:
            self._text_columns += [name for name in SYSTEM_KEYS if name in self._dataset.column_names]

    def records(self) -> Iterator[Record | Dropped]:
        """Implements `Input`: row by row."""
        label = self._dataset.features.get(self._config.label_column or "")
        if not self._names and isinstance(label, datasets.Value) and _is_number(label.pa_type):
            _logger.warning(
                "%s: column %r has numbers of classes without their names, so the numbers become the texts; name them"
                " by input.class_names",
                self._config.path,
                self._config.label_column,
            )
        for number, row in enumerate(self._rows()):
            yield Dropped(entry_id("row", number), "row that is damaged") if row is None else self._record(number, *row)

    def image(self, record: Record) -> bytes:
        """Implements `Input`."""
        assert record.image is not None, record.id
        row = int(record.image[0])
        where = f"{self._config.path}: row {row}"
        try:
            table = self._images[row]
            table.flatten().validate(full=True)
            value = table.column(0)[0]
        except (pa.ArrowException, OSError, IndexError) as error:
            raise SampleError("row that is damaged", detail=str(error), sample=where) from None
        found = image_or_path(value, max_bytes=self._config.max_image_bytes, where=where)
        return found if isinstance(found, bytes) else self._files.read(found)

    def _class_names(self) -> dict[str, str]:
        """Returns the names of classes by number: those of the file, or else of the dataset, which may have none."""
        if self._config.class_names is not None:
            return read_class_names(self._config.class_names)
        label = self._dataset.features.get(self._config.label_column or "")
        names = label.names if isinstance(label, datasets.ClassLabel) else []
        return {str(number): first_name(name) for number, name in enumerate(names)}

    def _columns_of_text(self) -> list[str]:
        """Returns the columns that hold the configured texts; `caption_column` may name a field in one."""
        config, known = self._config, self._dataset.column_names
        caption = config.caption_column and column_of(config.caption_column, known)
        others = (config.label_column, config.conversations_column, config.id_column, config.licence_column)
        return list(dict.fromkeys(name for name in (caption, *others) if name))

    def _image_columns(self) -> list[str]:
        return [self._config.image_column] if self._config.image_column is not None else []

    def _rows(self) -> Iterator[tuple[dict[str, Any], int] | None]:
        """Yields the texts and the number of images of each table row; None for a damaged row."""
        columns = list(dict.fromkeys([*self._text_columns, *self._image_columns()]))
        for table in self._dataset.select_columns(columns).iter(_ROWS_AT_ONCE):
            for chunk in _valid_chunks(table):
                if chunk is None:
                    yield None
                else:
                    yield from zip(python_rows(chunk.select(self._text_columns)), self._num_images(chunk), strict=True)

    def _num_images(self, table: pa.Table) -> list[int]:
        for name in self._image_columns():
            column = table.column(name)
            if is_list(column.type):
                return [count or 0 for count in pc.list_value_length(column).to_pylist()]
            return [int(valid) for valid in column.is_valid().to_pylist()]
        return [0] * table.num_rows

    def _record(self, number: int, row: Mapping[str, Any], num_images: int) -> Record | Dropped:
        config = self._config
        id = entry_id("row", number, row.get(config.id_column or ""))
        try:
            if num_images > 1:
                raise SkippedInput("more than one image")
            turns = self._turns(row, num_images)
            if not num_images and not turns:
                raise SkippedInput("no image")
            return Record(
                id=id,
                image=(number,) if num_images else None,
                caption=self._caption(row),
                class_name=self._class_name(row),
                turns=turns,
                licence=licence_of(row, config.licence_column),
            )
        except SkippedInput as skip:
            return Dropped(id, skip.reason)

    def _caption(self, row: Mapping[str, Any]) -> str:
        column = self._config.caption_column
        return usable_caption(field_of(row, column), max_chars=self._config.max_text_chars) if column else ""

    def _class_name(self, row: Mapping[str, Any]) -> str:
        column = self._config.label_column
        if column is None:
            return ""
        return class_name_of(row[column], self._names or None, max_chars=self._config.max_text_chars)

    def _turns(self, row: Mapping[str, Any], num_images: int) -> tuple[tuple[str, str], ...]:
        column = self._config.conversations_column
        if column is None:
            return ()
        dialogue = read_dialogue(row[column], max_chars=self._config.max_text_chars, system=system_of(row))
        if dialogue.num_images > 1:
            raise SkippedInput("more than one image")
        if dialogue.num_images > num_images:
            raise SkippedInput("image marker without an image")
        return dialogue.turns

    def _check_columns(self) -> None:
        config, known = self._config, self._dataset.column_names
        texts = (config.caption_column, config.label_column, config.conversations_column)
        if not any(texts):
            raise InputError(
                f"{config.path}: no text column is configured; set input.caption_column, input.label_column or "
                f"input.conversations_column to one of {known}"
            )
        for name in (*self._columns_of_text(), config.image_column):
            if name is not None and name not in known:
                raise InputError(f"{config.path}: has no column {name!r}, only {known}; set input.image_column, ...")
        for name in self._image_columns():
            kind = self._dataset.features.arrow_schema.field(name).type
            if not holds_images(kind):
                raise InputError(f"{config.path}: column {name!r} is of type {kind}; expected datasets.Image or bytes")


def _valid_chunks(table: pa.Table) -> Iterator[pa.Table | None]:
    """Yields the table if it is valid, else its rows one by one, with None for each damaged one.

    Arrow does not check a mapped file: values with damaged lengths would be read from outside of it.
    """
    try:
        table.flatten().validate(full=True)  # flattened, since struct fields are not checked row by row
        yield table
    except pa.ArrowInvalid:
        if table.num_rows == 1:
            yield None
            return
        for row in range(table.num_rows):
            yield from _valid_chunks(table.slice(row, 1))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _loaded(config: HuggingFaceConfig) -> datasets.Dataset | datasets.DatasetDict:
    if not config.path.is_dir():
        raise InputError(f"{config.path}: no such folder; expected one written by save_to_disk of datasets")
    try:
        return datasets.load_from_disk(str(config.path.resolve()), keep_in_memory=False)
    except Exception as error:  # damaged folders raise anything from KeyError to ArrowInvalid
        raise InputError(
            f"{config.path}: not readable as a saved dataset ({type(error).__name__}: {error}); "
            "write it with save_to_disk of datasets"
        ) from None


def _split_of(loaded: datasets.Dataset | datasets.DatasetDict, config: HuggingFaceConfig) -> datasets.Dataset:
    """Returns the configured split in the format of Arrow tables, in which images stay undecoded."""
    if isinstance(loaded, datasets.DatasetDict):
        split = config.split or (next(iter(loaded)) if len(loaded) == 1 else None)
        if split not in loaded:
            raise InputError(
                f"{config.path}: has the splits {list(loaded)}, found input.split={split!r}; set it to one of them"
            )
        loaded = loaded[split]
    elif config.split is not None:
        raise InputError(f"{config.path}: has no splits, found input.split={config.split!r}; do not set it")
    return loaded.with_format("arrow")
