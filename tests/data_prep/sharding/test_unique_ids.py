"""Repeated ids are found."""

from hypothesis import given
from hypothesis import strategies as st

from data_prep.sharding import unique_ids
from data_prep.sharding.unique_ids import UniqueIds, ids_with


@given(st.lists(st.text(max_size=2), max_size=60))
def test_exactly_the_repeated_ids_are_found(ids):
    with UniqueIds() as unique:
        for name in ids:
            unique.add([name])
        found = ids_with(unique.repeated(), ids)
    assert found == sorted({name for name in ids if ids.count(name) > 1})


def test_ids_are_kept_in_files_that_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(unique_ids, "_BUFFERED_HASHES", 100)
    with UniqueIds(tmp_path) as unique:
        for start in range(0, 10_000, 50):
            unique.add(str(number) for number in range(start, start + 50))
            assert len(unique._buffer) < 150
        unique.add(["77"])
        assert ids_with(unique.repeated(), map(str, [*range(10_000), 77])) == ["77"]
    assert list(tmp_path.iterdir()) == []
