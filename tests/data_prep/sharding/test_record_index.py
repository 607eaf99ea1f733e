"""The record index reads records by number and is written whole or not at all."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.inputs.record import Dropped, Record
from data_prep.sharding.record_index import INVALID_UNICODE, RecordIndex, build_record_index, dropped_entries
from tests.toy_input import ToyConfig, ToyInput
from ufork.errors import InputError, StorageError

TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
RECORDS = st.builds(
    Record,
    id=TEXT,
    image=st.none() | st.tuples(TEXT, st.integers(0, 2**40)),
    caption=TEXT,
    class_name=TEXT,
    turns=st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
    licence=TEXT,
)
ENTRIES = st.lists(RECORDS | st.builds(Dropped, TEXT, TEXT), min_size=1, max_size=20, unique_by=lambda entry: entry.id)


class Listed:
    def __init__(self, entries):
        self.entries = entries

    def records(self):
        return iter(self.entries)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(ENTRIES.filter(lambda entries: any(isinstance(entry, Record) for entry in entries)))
def test_records_read_back_by_number(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("work") / "record_index"
    build_record_index(folder, Listed(entries))
    record_index = RecordIndex(folder)
    records = [entry for entry in entries if isinstance(entry, Record)]
    assert len(record_index) == len(records)
    assert [record_index[number] for number in range(len(records))] == records
    assert record_index.read([0, len(records) - 1]) == [records[0], records[-1]]
    assert list(dropped_entries(folder)) == [entry for entry in entries if isinstance(entry, Dropped)]


def test_building_twice_gives_the_same_bytes_and_keeps_the_first(tmp_path):
    source = ToyInput(ToyConfig(size=50))
    for name in ("one", "two"):
        build_record_index(tmp_path / name, source)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    build_record_index(tmp_path / "one", Listed([]))
    assert len(RecordIndex(tmp_path / "one")) == 45 and len(list(tmp_path.iterdir())) == 2


def test_repeated_ids_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="1 ids occur more than once in the input, such as b;"):
        build_record_index(tmp_path / "record_index", Listed([Record(id=name) for name in "abcb"]))
    assert list(tmp_path.iterdir()) == []


def test_an_input_without_usable_entries_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(InputError, match=r"all 3 were dropped:\n.*2 .* empty\n +a, b\n.*1 .* odd\n +c"):
        build_record_index(tmp_path / "x", Listed([Dropped("a", "empty"), Dropped("b", "empty"), Dropped("c", "odd")]))
    with pytest.raises(InputError, match="has no entry"):
        build_record_index(tmp_path / "x", Listed([]))


def test_an_entry_with_a_lone_surrogate_is_dropped(tmp_path):
    build_record_index(
        tmp_path / "record_index", Listed([Record(id="a"), Record(id="b", caption="\ud83d"), Dropped("\ud83d", "x")])
    )
    assert list(dropped_entries(tmp_path / "record_index")) == [
        Dropped("'b'", INVALID_UNICODE),
        Dropped("'\\ud83d'", INVALID_UNICODE),
    ]


def test_a_reader_that_fails_leaves_nothing(tmp_path):
    def failing():
        yield Record(id="a")
        raise InputError("a.csv: gone")

    with pytest.raises(InputError, match="gone"):
        build_record_index(tmp_path / "record_index", Listed(failing()))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "refused by the test")

    monkeypatch.setattr("data_prep.sharding.record_index.dropped_line", refuse)
    with pytest.raises(StorageError, match=f"{tmp_path}.*refused by the test"):
        build_record_index(tmp_path / "record_index", Listed([Dropped("a", "b")]))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        build_record_index(tmp_path / "file" / "record_index", Listed([]))
