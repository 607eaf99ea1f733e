"""Indices of tars by our writer, webdataset's, tarfile and GNU tar."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ufork.data.shards.index import MAX_EXTENSIONS, ShardIndex, index_path
from ufork.errors import ShardError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder/" + "x" * 120
MEMBERS = {"a.json": b"{}", "a.png": b"p" * 700, "b/c.json": b"[1]", "b/c.codes.npy": b"", f"{LONG}.json": b"long"}


def write_tar(path, members: dict[str, bytes], tar_format: int) -> None:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, contents in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(contents), 1.5 if tar_format == tarfile.PAX_FORMAT else 0
            tar.addfile(info, io.BytesIO(contents))


def read_all(path) -> dict[str, dict[str, bytes]]:
    index, data = ShardIndex.build(path), path.read_bytes()
    return {
        key: {
            name: data[offsets[row] : offsets[row] + index.sizes[name][row]]
            for name, offsets in index.offsets.items()
            if offsets[row] >= 0
        }
        for row, key in enumerate(index.keys)
    }


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_finds_every_member_of_tarfile(tmp_path, tar_format):
    write_tar(tmp_path / "x.tar", MEMBERS, FORMATS[tar_format])
    assert read_all(tmp_path / "x.tar") == {
        "a": {"json": b"{}", "png": b"p" * 700},
        "b/c": {"json": b"[1]", "codes.npy": b""},
        LONG: {"json": b"long"},
    }


def test_reads_ustar_prefixes(tmp_path):
    name = "d" * 90 + "/" + "e" * 50
    write_tar(tmp_path / "x.tar", {f"{name}.json": b"1"}, tarfile.USTAR_FORMAT)
    assert read_all(tmp_path / "x.tar") == {name: {"json": b"1"}}


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("ab/é", min_size=1, max_size=200).filter(lambda key: key.rpartition("/")[2] != ""),
        st.dictionaries(st.sampled_from(["json", "png", "codes.npy"]), st.binary(max_size=1200), min_size=1),
        max_size=6,
    ),
    st.sampled_from(["gnu", "pax"]),
)
def test_any_names_and_sizes_are_indexed(tmp_path_factory, samples, tar_format):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    members = {f"{key}.{name}": value for key, columns in samples.items() for name, value in columns.items()}
    write_tar(path, members, FORMATS[tar_format])
    assert read_all(path) == samples


def test_reads_the_writer_of_webdataset(tmp_path):
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number:04d}", "json": {"n": number}, "codes.npy": np.full(3, number)})
    samples = read_all(path)
    assert list(samples) == ["0000", "0001", "0002"]
    assert samples["0001"]["json"] == b'{"n": 1}'
    assert np.load(io.BytesIO(samples["0002"]["codes.npy"])).tolist() == [2, 2, 2]


def test_folders_links_and_names_without_extension_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("b", tarfile.DIRTYPE), ("b/link.json", tarfile.SYMTYPE), ("README", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    assert read_all(tmp_path / "x.tar") == {}


def test_every_truncation_is_noticed(tmp_path):
    whole = tmp_path / "whole.tar"
    write_tar(whole, MEMBERS, tarfile.GNU_FORMAT)
    data = whole.read_bytes().rstrip(b"\0")
    cut = tmp_path / "cut.tar"
    for length in range(0, len(data), 256):
        cut.write_bytes(data[:length])
        with pytest.raises(ShardError, match=r"cut\.tar: truncated"):
            ShardIndex.build(cut)


def test_damage_is_named(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, MEMBERS, tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[1030] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"x\.tar: byte 1024 is no tar header"):
        ShardIndex.build(path)


def test_two_members_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.json"))
    with pytest.raises(ShardError, match=r"'a' has two members \.json"):
        ShardIndex.build(tmp_path / "x.tar")


@pytest.mark.parametrize(("size", "name_bytes"), [(b"-0000001000", 0), (b"00000000000", 2**17)])
def test_malicious_headers_end_the_scan(tmp_path, size, name_bytes):
    data = bytearray(tarfile.TarInfo("a" * name_bytes + "a.json").tobuf(tarfile.PAX_FORMAT))
    start = len(data) - 512
    data[start + 124 : start + 135] = size
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    (tmp_path / "x.tar").write_bytes(data + bytes(1024))
    with pytest.raises(ShardError, match="no tar header|shorter"):
        ShardIndex.build(tmp_path / "x.tar")


@pytest.mark.parametrize("records", [b"9" * 5000, b"13 size=-512\n"])
def test_invalid_pax_records_are_ignored(tmp_path, records):
    nonsense = tarfile.TarInfo("nonsense")
    nonsense.type, nonsense.size = tarfile.XHDTYPE, len(records)
    header, member = (info.tobuf(tarfile.USTAR_FORMAT) for info in (nonsense, tarfile.TarInfo("a.json")))
    (tmp_path / "x.tar").write_bytes(header + records + bytes(-len(records) % 512) + member + bytes(1024))
    assert read_all(tmp_path / "x.tar") == {"a": {"json": b""}}


def test_missing_tar_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"none\.tar"):
        ShardIndex.build(tmp_path / "none.tar")


def test_saved_index_is_used_only_for_the_tar_it_fits(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, MEMBERS, tarfile.GNU_FORMAT)
    assert ShardIndex.load(path) is None
    built = ShardIndex.build(path)
    built.save(path)
    loaded = ShardIndex.load(path)
    assert loaded.keys == built.keys
    assert {name: column.tolist() for name, column in loaded.offsets.items()} == {
        name: column.tolist() for name, column in built.offsets.items()
    }
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    assert ShardIndex.load(path) is None
    write_tar(path, MEMBERS, tarfile.GNU_FORMAT)
    index_path(path).write_text("[]")
    assert ShardIndex.load(path) is None


def swapped(columns):
    offsets = columns["offsets"]["json"]
    offsets[0], offsets[1] = offsets[1], offsets[0]


DAMAGES = {
    "swapped offsets": swapped,
    "an offset behind the end": lambda columns: columns["offsets"]["json"].__setitem__(-1, 10**9),
    "a huge size": lambda columns: columns["sizes"]["json"].__setitem__(0, 2**63 - 1),
    "a number beyond 64 bits": lambda columns: columns["sizes"]["json"].__setitem__(0, 10**30),
    "a negative offset": lambda columns: columns["offsets"]["json"].__setitem__(0, -512),
    "an offset between blocks": lambda columns: columns["offsets"]["json"].__setitem__(0, 513),
    "a shorter column": lambda columns: columns["sizes"]["json"].pop(),
    "a column without sizes": lambda columns: columns["sizes"].pop("json"),
    "a key too many": lambda columns: columns["keys"].append("z"),
    "a key that is no text": lambda columns: columns["keys"].__setitem__(0, None),
    "columns that are a text": lambda columns: columns.update(offsets="json"),
    "no columns": lambda columns: columns.update(offsets={}, sizes={}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_not_used(tmp_path, name):
    """Row M12."""
    path = tmp_path / "x.tar"
    write_tar(path, MEMBERS, tarfile.GNU_FORMAT)
    ShardIndex.build(path).save(path)
    assert ShardIndex.load(path)
    columns = json.loads(index_path(path).read_text())
    DAMAGES[name](columns)
    index_path(path).write_text(json.dumps(columns))
    assert ShardIndex.load(path) is None


@pytest.mark.parametrize("content", [b"", b"[" * 10**5, b"null", b"\xff"])
def test_an_index_that_is_no_json_is_not_used(tmp_path, content):
    path = tmp_path / "x.tar"
    write_tar(path, MEMBERS, tarfile.GNU_FORMAT)
    index_path(path).write_bytes(content)
    assert ShardIndex.load(path) is None


def test_an_index_of_an_empty_tar_is_used(tmp_path):
    write_tar(tmp_path / "x.tar", {}, tarfile.GNU_FORMAT)
    ShardIndex.build(tmp_path / "x.tar").save(tmp_path / "x.tar")
    assert len(ShardIndex.load(tmp_path / "x.tar")) == 0


def test_more_extensions_than_columns_can_be_kept_of_are_refused(tmp_path):
    write_tar(tmp_path / "x.tar", {f"a{n}.x{n}": b"" for n in range(MAX_EXTENSIONS + 1)}, tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match="more than 1000 different extensions"):
        ShardIndex.build(tmp_path / "x.tar")
