"""Tars not written by ufork: grouping of members, meaning of texts, and malicious or damaged tars."""

import gzip
import io
import subprocess
import tarfile

import pytest
import webdataset

from data_prep.inputs.config import TarsConfig, open_input
from data_prep.inputs.record import Dropped, Record
from ufork.errors import InputError, SampleError


def write_tar(path, members):
    """Members in order; a str is the target of a symlink."""
    with tarfile.open(path, "w") as tar:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            if isinstance(contents, str):
                info.type, info.linkname = tarfile.SYMTYPE, contents
                tar.addfile(info)
            else:
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
    return path


def read(path, **settings):
    reader = open_input(TarsConfig(path=path, **settings))
    return reader, list(reader.records())


def reasons(records):
    """What was wrong with each, without what to do."""
    return [record.reason.partition(";")[0] if isinstance(record, Dropped) else "" for record in records]


def test_the_tars_of_img2dataset(tmp_path, read_in_another_process):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard:05d}.tar")) as writer:
            for number in range(2):
                caption, key = f"caption {shard}{number}", f"{shard:05d}{number:04d}"
                metadata = {"caption": caption, "url": "https://example.org", "status": "success", "license": "CC0"}
                writer.write({"__key__": key, "jpg": key.encode(), "json": metadata, "txt": caption})
    (tmp_path / "00000.parquet").write_bytes(b"not read")
    reader, records = read(tmp_path)
    assert [(record.id, record.caption, record.licence) for record in records] == [
        (f"{shard:05d}.tar:{number}:{shard:05d}{number:04d}", f"caption {shard}{number}", "CC0")
        for shard in range(2)
        for number in range(2)
    ]
    assert [reader.image(record) for record in records[::-1]] == [
        b"000010001", b"000010000", b"000000001", b"000000000"
    ]  # fmt: skip
    assert read_in_another_process(TarsConfig(path=tmp_path)) == str(
        [(record, reader.image(record)) for record in records]
    )


@pytest.mark.parametrize("extension", ["cls", "cls.txt"])
@pytest.mark.parametrize(
    ("name", "contents"),
    [("names.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n"), ("names.json", '["tench", "goldfish"]')],
)
def test_classes_have_names(tmp_path, extension, name, contents):
    (tmp_path / name).write_text(contents)
    members = [("a.jpg", b"a"), (f"a.{extension}", b"1"), ("b.jpg", b"b"), (f"b.{extension}", b"0\n")]
    members += [("c.jpg", b"c"), (f"c.{extension}", b"7"), ("d.jpg", b"d"), (f"d.{extension}", b"a bird")]
    _, records = read(write_tar(tmp_path / "x.tar", members), class_names=tmp_path / name)
    assert [getattr(record, "class_name", "") for record in records] == ["goldfish", "tench", "", "a bird"]
    assert reasons(records)[2] == "class number without a name in class_names"


def test_a_plain_tar_of_images_and_texts(tmp_path):
    members = [("pets/a.PNG", b"a"), ("pets/a.txt", b"  a cat\n"), ("b.jfif", b"b"), ("b.json", b'{"text": "a dog"}')]
    _, records = read(write_tar(tmp_path / "x.tar", members), caption_key="text")
    assert [record.caption for record in records] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("b.jpg", b"b")], "neither caption nor class beside the image"),
        ([("b.txt", b"b")], "no image (.jpg, .jpeg, .jfif, .png, .webp) beside the text"),
        ([("b.jpg", b"b"), ("b.txt", b" ")], "empty caption"),
        ([("b.jpg", b"b"), ("b.txt", b"\xff")], "caption that is not valid UTF-8"),
        ([("b.jpg", b"b"), ("b.txt", b"x" * 2000)], "caption longer than input.max_text_chars"),
        ([("b.jpg", b"b"), ("b.txt", b"x" * 2_000_000)], "text or metadata that is too large"),
        ([("b.jpg", b"b"), ("b.png", b"b"), ("b.txt", b"b")], "more than one image or text of the same name"),
        ([("b.jpg", b"b"), ("b.jpg", b"b"), ("b.txt", b"b")], "more than one image or text of the same name"),
        ([("b.jpg", bytes(2_000_000)), ("b.txt", b"b")], "image larger than input.max_image_mb"),
        ([("b.jpg", b"b"), ("b.json", b"{")], "metadata that is not JSON"),
        ([("b.jpg", b"b"), ("b.json", b"[" * 100_000)], "metadata that is not JSON"),
        ([("b.jpg", b"b"), ("b.json", b"[]")], "metadata that is not an object"),
        ([("b.jpg", b"b"), ("b.json", b'{"caption": 3}')], "caption that is a number"),
        ([("b.jpg", b"b"), ("b.json", b'{"status": "failed"}')], "image that img2dataset could not download"),
    ],
)  # fmt: skip
def test_unusable_entries_are_dropped_with_the_reason(tmp_path, members, reason):
    good = [[(f"{key}.jpg", b"a"), (f"{key}.txt", b"a")] for key in "ac"]
    path = write_tar(tmp_path / "x.tar", [*good[0], *members, *good[1]])
    _, records = read(path, max_image_mb=1, max_text_chars=1000)
    assert reasons(records) == ["", reason, ""]


def test_names_of_members_are_not_used_as_paths(tmp_path):
    (tmp_path / "tars").mkdir()
    names = ["../outside", "/tmp/absolute", "a/../../b", "x" * 300 + "/long"]
    members = [(name + extension, b"a") for name in names for extension in (".jpg", ".txt")]
    members += [("link.jpg", "/etc/passwd"), ("link.txt", b"a link")]
    before = sorted(tmp_path.rglob("*"))
    write_tar(tmp_path / "tars/x.tar", members)
    reader, records = read(tmp_path / "tars")
    assert [reader.image(record) for record in records if isinstance(record, Record)] == [b"a"] * len(names)
    assert reasons(records)[-1] == "image or text that is a link in the tar"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "tars/x.tar"])


def test_repeated_keys_get_different_ids(tmp_path):
    members = [("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"2"), ("b.txt", b"two"), ("a.jpg", b"3"), ("a.txt", b"3")]
    reader, records = read(write_tar(tmp_path / "x.tar", members))
    assert [record.id for record in records] == ["x.tar:0:a", "x.tar:1:b", "x.tar:2:a"]
    assert reader.image(records[2]) == b"3"


def test_damaged_tars_are_read_up_to_the_damage_and_the_others_to_their_end(tmp_path):
    members = [(f"{number}{extension}", bytes(700)) for number in range(4) for extension in (".jpg", ".json")]
    members = [(name, b'{"caption": "a"}' if name.endswith("json") else data) for name, data in members]
    for name in ("a", "b", "c"):
        write_tar(tmp_path / f"{name}.tar", members)
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:7000])
    (tmp_path / "d.tar.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "e.tar").write_bytes(b"")
    _, records = read(tmp_path)
    fault = "file that cannot be read, or not to its end"
    assert reasons(records) == [""] * 4 + ["", "", fault] + [""] * 4 + [fault] * 2


@pytest.mark.parametrize(
    ("name", "start", "program"),
    [
        ("x.tar.gz", b"\x1f\x8b", "gunzip"), ("x.tgz", b"\x1f\x8b", "gunzip"), ("x.tar", b"BZh9", "bunzip2"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd", "unzstd"), ("x.tar.xz", b"\xfd7zXZ\0", "unxz"),
        ("x.tar", b"PK\3\4", "unzip"),
    ],
)  # fmt: skip
def test_a_collection_of_compressed_tars_is_refused(tmp_path, name, start, program):
    (tmp_path / name).write_bytes(start + bytes(600))
    with pytest.raises(InputError, match=f"`{program}` it first"):
        read(tmp_path)


def captions(records):
    return {record.id.split(":", 2)[2]: record.caption for record in records if isinstance(record, Record)}


def test_names_may_have_dots(tmp_path):
    """F1: the extension is the longest known one; further pictures of an entry do not separate its members."""
    names = ["a", "b.1", "b.2", "clip 2.0 a", "d", "d.1", "v1.5_003", "v1.5_004"]
    members = [(name + extension, name.encode()) for name in names for extension in (".jpg", ".txt")]
    members += [
        ("w.bin", b""),
        ("w.jpg", b"w"),
        ("w.json", b"{}"),
        ("w.seg.png", b"w"),
        ("w.x.npy", b""),
        ("w.txt", b"w"),
    ]
    reader, records = read(write_tar(tmp_path / "x.tar", members))
    assert captions(records) == {name: name for name in [*names, "w"]}
    assert [record.id for record in records if isinstance(record, Dropped)] == ["x.tar:9:w.seg"]
    for record in records[:8]:
        assert reader.image(record).decode() == record.caption


def test_further_extensions_are_mapped_by_the_option(tmp_path):
    """F1: compound extensions, as datasets have them for columns."""
    members = [(f"s{number}.{name}", b"7") for number in range(2) for name in ("Input.JPG", "outputs.txt", "mask.png")]
    path = write_tar(tmp_path / "x.tar", [*members, ("README", b""), ("s9.avif", b"7")])
    _, records = read(path)
    assert len(records) == 8 and all("input.extensions" in record.reason for record in records)
    _, records = read(path, extensions={".input.jpg": "image", "outputs.txt": "caption", "mask.png": "ignored"})
    assert captions(records) == {"s0": "7", "s1": "7"} and len(records) == 4


def test_tars_joined_by_cat_are_read_to_the_last(tmp_path):
    """F3; bytes behind an end mark that are no tar are counted."""
    for name in "ab":
        write_tar(tmp_path / name, [(f"{name}.jpg", b"1"), (f"{name}.txt", name.encode())])
    joined = b"".join((tmp_path / name).read_bytes() for name in "aba")
    (tmp_path / "x.tar").write_bytes(joined)
    _, records = read(tmp_path / "x.tar")
    assert [record.caption for record in records] == ["a", "b", "a"]
    (tmp_path / "x.tar").write_bytes(joined + b"junk" * 200)
    _, records = read(tmp_path / "x.tar")
    assert reasons(records) == ["", "", "", "file that cannot be read, or not to its end"]
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(joined)
        file.truncate(2**40)
    _, records = read(tmp_path / "x.tar")
    assert reasons(records) == ["", "", "", "file that cannot be read, or not to its end"]


def test_an_unsorted_tar_says_how_to_sort_it(tmp_path):
    """F4."""
    members = [(f"{number}.{extension}", b"a") for extension in ("jpg", "txt") for number in range(3)]
    _, records = read(write_tar(tmp_path / "x.tar", members))
    assert len(records) == 6 and all("`tar --sort=name`" in record.reason for record in records)


def test_members_that_are_no_plain_files_are_counted(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in [
            ("._a.jpg", "0"), ("__MACOSX/a.jpg", "0"), ("a.jpg", "0"), ("d", "5"), (".DS_Store", "0"), ("a.txt", "7"),
            ("b.jpg", "0"), ("b.txt", "1"), ("c.jpg", "S"), ("c.txt", "0"), ("p", "6"),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.size = kind.encode(), 3 if kind in "07S" else 0
            tar.addfile(info, io.BytesIO(b"one"))
    reader, records = read(tmp_path / "x.tar")
    hidden, link = "hidden file, such as macOS and desktops add", "image or text that is a link in the tar"
    sparse, pipe = "image or text that is a sparse file in the tar", "device, pipe or part of a file in the tar"
    assert sorted(reasons(records)) == sorted([hidden] * 3 + ["", link, sparse, pipe])
    assert captions(records) == {"a": "one"}


def test_gnu_tars_sparse_files_are_not_taken_for_their_maps(tmp_path):
    for name in ("a.jpg", "a.txt"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**20)
            file.write(b"x")
    command = ["tar", "--sparse", "--format=posix", "-cf", "x.tar", "a.jpg", "a.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    _, (record,) = read(tmp_path / "x.tar")
    assert "sparse" in record.reason


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_in_any_encoding_stay_apart(tmp_path, form):
    with tarfile.open(tmp_path / "x.tar", "w", format=form, encoding="latin-1") as tar:
        for name in (
            "ä.jpg",
            "ä.txt",
            "ö.jpg",
            "ö.txt",
            "f" * 90 + "/" + "g" * 90 + ".jpg",
            "f" * 90 + "/" + "g" * 90 + ".TXT",
        ):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    _, records = read(tmp_path / "x.tar")
    utf8 = form == tarfile.PAX_FORMAT
    assert list(captions(records)) == [
        "ä" if utf8 else "\\udce4",
        "ö" if utf8 else "\\udcf6",
        "f" * 90 + "/" + "g" * 90,
    ]


def test_a_tar_that_was_truncated_after_its_entries_were_listed(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"a" * 1000), ("a.txt", b"a")])
    reader, (record,) = read(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SampleError, match="truncated"):
        reader.image(record)
    path.unlink()
    with pytest.raises(SampleError, match="tar cannot be read"):
        reader.image(record)
