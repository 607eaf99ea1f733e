"""Random access to the records of an input by number, built in one pass over the input.

    Input.records() --build_record_index-->  FOLDER/{records.jsonl, offsets.u64, dropped.jsonl} --RecordIndex--> Record

It holds text only; images stay in the collection. Its bytes depend on the input alone, so several tasks may build it at
the same time: the first one to finish wins.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from data_prep.inputs.record import Dropped, Input, Record
from data_prep.report.drop_report import nothing_kept
from data_prep.report.selection import Selection
from data_prep.sharding.progress import Progress
from data_prep.sharding.unique_ids import UniqueIds, ids_with
from ufork.errors import InputError
from ufork.files import read_at, whole_folder

RECORDS_FILE, OFFSETS_FILE, DROPPED_FILE = "records.jsonl", "offsets.u64", "dropped.jsonl"
INVALID_UNICODE = "name or text that is not valid Unicode"
"""Reason to drop an entry."""

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# json.loads would detect the encoding of every line.
_decoded = json.JSONDecoder().decode
_BUFFERED_RECORDS = 1 << 16
_NAMED_IDS = 5


class RecordIndex:
    """Reads the records of a finished folder; several processes may do so."""

    def __init__(self, folder: Path) -> None:
        """Opens the files. Memory does not grow with the number of records."""
        self._offsets_path = folder / OFFSETS_FILE
        self._records = open(folder / RECORDS_FILE, "rb")  # closed with this object
        self._length = self._offsets_path.stat().st_size // 8 - 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Record:
        return self.read([number])[0]

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Record]:
        """Returns the records with these numbers; fastest when the numbers ascend."""
        offsets = np.memmap(self._offsets_path, np.uint64, mode="r")
        wanted = np.asarray(numbers, np.int64)
        starts, ends = offsets[wanted].tolist(), offsets[wanted + 1].tolist()
        file = self._records.fileno()
        return [_record(read_at(file, end - start, start)) for start, end in zip(starts, ends, strict=True)]


def build_record_index(folder: Path, source: Input) -> None:
    """Writes all records of `source` into `folder`, whole or not at all. An existing folder is kept.

    Raises:
        InputError: the collection cannot be read, has no usable entry (the reasons are named), or has two records with
            the same id.
        StorageError: `folder` cannot be written.
    """
    if folder.exists():
        return
    with whole_folder(folder) as draft:
        _write_all(draft, source)


def dropped_entries(folder: Path) -> Iterator[Dropped]:
    """Yields the entries that were dropped when the record index in `folder` was built."""
    with open(folder / DROPPED_FILE, encoding="utf-8") as lines:
        yield from (Dropped(**json.loads(line)) for line in lines)


def dropped_line(entry: Dropped, detail: str = "") -> str:
    """Returns the line of dropped.jsonl for `entry`: JSON of id, reason and, if given, the exact error."""
    fields = {"id": entry.id, "reason": entry.reason}
    return _JSON.encode(fields | {"detail": detail} if detail else fields) + "\n"


def _write_all(folder: Path, source: Input) -> None:
    with (
        UniqueIds(folder) as ids,
        open(folder / RECORDS_FILE, "wb") as records,
        open(folder / OFFSETS_FILE, "wb") as offsets,
        open(folder / DROPPED_FILE, "wb") as dropped,
    ):
        selection = _write_records(source.records(), ids, records, offsets, dropped)
        repeated = ids.repeated()
    if not selection.kept:
        raise nothing_kept(selection, "input")
    if repeated and (names := ids_with(repeated, _ids(folder / RECORDS_FILE))):
        raise InputError(
            f"{len(names)} ids occur more than once in the input, such as {', '.join(names[:_NAMED_IDS])}; rename the"
            " entries, since sample ids must be unique"
        )


def _write_records(
    entries: Iterable[Record | Dropped], ids: UniqueIds, records: IO[bytes], offsets: IO[bytes], dropped: IO[bytes]
) -> Selection:
    """Writes the files; counts every entry, which is either a record or dropped."""
    progress = Progress("record index", unit="records")
    end, selection = 0, Selection()
    new_offsets, new_ids = array("Q", [0]), list[str]()
    for entry in entries:
        entry, line = _encoded(entry)
        if isinstance(entry, Dropped):
            dropped.write(line)
            selection.drop(entry.id, entry.reason)
            continue
        end += records.write(line)
        new_offsets.append(end)
        new_ids.append(entry.id)
        selection.kept += 1
        if len(new_offsets) >= _BUFFERED_RECORDS:
            new_offsets.tofile(offsets)
            ids.add(new_ids)
            progress.reach(selection.kept)
            new_offsets, new_ids = array("Q"), []
    new_offsets.tofile(offsets)
    ids.add(new_ids)
    return selection


def _encoded(entry: Record | Dropped) -> tuple[Record | Dropped, bytes]:
    """Returns the entry and its line; an entry that UTF-8 cannot encode, such as a lone surrogate, becomes Dropped."""
    try:
        return entry, _line(entry) if isinstance(entry, Record) else dropped_line(entry).encode()
    except UnicodeEncodeError:
        dropped = Dropped(ascii(entry.id), INVALID_UNICODE)
        return dropped, dropped_line(dropped).encode()


def _line(record: Record) -> bytes:
    fields = (record.id, record.image, record.caption, record.class_name, record.turns, record.licence)
    return _JSON.encode(fields).encode() + b"\n"


def _record(line: bytes) -> Record:
    name, image, caption, class_name, turns, licence = _decoded(line.decode())
    return Record(
        id=name,
        image=None if image is None else tuple(image),
        caption=caption,
        class_name=class_name,
        turns=tuple([(question, answer) for question, answer in turns]),
        licence=licence,
    )


def _ids(records: Path) -> Iterator[str]:
    with open(records, "rb") as lines:
        yield from (_record(line).id for line in lines)
