"""All records of an input by number, after one pass over it.

    Input.records() --build_record_index-->  FOLDER/{records.jsonl, offsets.u64, dropped.jsonl} --RecordIndex--> Record

Text only: images stay where they are. Built twice it has the same bytes, so that several tasks which all find none may
each build one; the first to be whole stays.
"""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.inputs.record import Dropped, Input, Record
from data_prep.sharding.progress import Progress
from data_prep.sharding.unique_ids import UniqueIds, ids_with
from ufork.errors import InputError
from ufork.files import whole_folder

RECORDS_FILE, OFFSETS_FILE, DROPPED_FILE = "records.jsonl", "offsets.u64", "dropped.jsonl"
NO_UNICODE = "name or text that is no Unicode"
"""Why an entry is left out."""

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# json.loads guesses the encoding anew for every line.
_decoded = json.JSONDecoder().decode
_HELD_OFFSETS = 1 << 16
_NAMED_IDS = 5


class RecordIndex:
    """The records in a finished folder; any number of processes may read it."""

    def __init__(self, folder: Path) -> None:
        """Opens it; what it takes in memory does not depend on the number of records."""
        self._offsets_path = folder / OFFSETS_FILE
        self._records = open(folder / RECORDS_FILE, "rb")  # closed with this object
        self._length = self._offsets_path.stat().st_size // 8 - 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Record:
        return self.read([number])[0]

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Record]:
        """Records by their numbers, soonest in ascending order."""
        offsets = np.memmap(self._offsets_path, np.uint64, mode="r")
        wanted = np.asarray(numbers, np.int64)
        starts, ends = offsets[wanted].tolist(), offsets[wanted + 1].tolist()
        file = self._records.fileno()
        return [_record(os.pread(file, end - start, start)) for start, end in zip(starts, ends, strict=True)]


def build_record_index(folder: Path, source: Input) -> None:
    """Writes all records of `source` into `folder`, whole or not at all; one that is there already stays.

    Raises:
        InputError: the collection cannot be read, has nothing to make samples of, or names two records alike.
        StorageError: `folder` cannot be written.
    """
    if folder.exists():
        return
    with whole_folder(folder) as draft:
        _write_all(draft, source)


def dropped_entries(folder: Path) -> Iterator[Dropped]:
    """What was left out when the record_index in `folder` was made."""
    with open(folder / DROPPED_FILE, encoding="utf-8") as lines:
        yield from (Dropped(**json.loads(line)) for line in lines)


def dropped_line(entry: Dropped, detail: str = "") -> str:
    """One line of a file of what was left out: JSON of id and reason, with what exactly was wrong where it is known."""
    fields = {"id": entry.id, "reason": entry.reason}
    return _JSON.encode(fields | {"detail": detail} if detail else fields) + "\n"


def _write_all(folder: Path, source: Input) -> None:
    with (
        UniqueIds(folder) as ids,
        open(folder / RECORDS_FILE, "wb") as records,
        open(folder / OFFSETS_FILE, "wb") as offsets,
        open(folder / DROPPED_FILE, "wb") as dropped,
    ):
        number = _write_records(source.records(), ids, records, offsets, dropped)
        repeated = ids.repeated()
    if not number:
        raise InputError("the input has no entry that can be used; is it the right folder or file, and the right kind?")
    if repeated and (names := ids_with(repeated, (_record(line).id for line in _lines(folder / RECORDS_FILE)))):
        raise InputError(
            f"{len(names)} ids come more than once in the input, as {', '.join(names[:_NAMED_IDS])}; samples would have"
            " the same id: rename the entries"
        )


def _write_records(
    entries: Iterable[Record | Dropped], ids: UniqueIds, records: IO[bytes], offsets: IO[bytes], dropped: IO[bytes]
) -> int:
    progress = Progress("record_index", unit="records")
    end, number = 0, 0
    held, held_ids = array("Q", [0]), list[str]()
    for entry in entries:
        entry, line = _encoded(entry)
        if isinstance(entry, Dropped):
            dropped.write(line)
            continue
        end += records.write(line)
        held.append(end)
        held_ids.append(entry.id)
        number += 1
        if len(held) >= _HELD_OFFSETS:
            held.tofile(offsets)
            ids.add(held_ids)
            progress.reach(number)
            held, held_ids = array("Q"), []
    held.tofile(offsets)
    ids.add(held_ids)
    return number


def _encoded(entry: Record | Dropped) -> tuple[Record | Dropped, bytes]:
    """The entry with its line; one that UTF-8 cannot hold, as half a surrogate pair, is left out."""
    try:
        return entry, _line(entry) if isinstance(entry, Record) else dropped_line(entry).encode()
    except UnicodeEncodeError:
        dropped = Dropped(ascii(entry.id), NO_UNICODE)
        return dropped, dropped_line(dropped).encode()


def _line(record: Record) -> bytes:
    fields = (record.id, record.image, record.caption, record.class_name, record.turns, record.licence)
    return _JSON.encode(fields).encode() + b"\n"


def _record(line: bytes) -> Record:
    name, image, caption, class_name, turns, licence = _decoded(line.decode())
    return Record(
        id=name,
        image=_place(image),
        caption=caption,
        class_name=class_name,
        turns=tuple([(question, answer) for question, answer in turns]),
        licence=licence,
    )


def _place(image: list[Any] | None) -> tuple[str | int, ...] | None:
    return None if image is None else tuple(image)


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as lines:
        yield from lines
