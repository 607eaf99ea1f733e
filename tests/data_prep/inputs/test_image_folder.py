"""Class folders: class names, order, and files that must not be read."""

import json
import os

import pytest

from data_prep.inputs.config import ImageFolderConfig, open_input
from data_prep.inputs.record import Dropped, Record
from ufork.errors import InputError, SampleError


def write(path, contents: bytes = b"image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return path


def read(path, **settings):
    reader = open_input(ImageFolderConfig(path=path, **settings))
    return reader, list(reader.records())


def test_without_class_names_the_folder_is_the_class(tmp_path):
    write(tmp_path / "great_white_shark/b.JPEG", b"shark b")
    write(tmp_path / "great_white_shark/a.jpg", b"shark a")
    write(tmp_path / "train/cat/deep.png", b"cat")
    reader, records = read(tmp_path)
    assert [(record.id, record.class_name) for record in records] == [
        ("great_white_shark/a.jpg", "great white shark"),
        ("great_white_shark/b.JPEG", "great white shark"),
        ("train/cat/deep.png", "cat"),
    ]
    assert [reader.image(record) for record in reversed(records)] == [b"cat", b"shark b", b"shark a"]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"),
        ("names.json", json.dumps({"n01440764": "tench", "n01443537": "goldfish"})),
    ],
)
def test_class_names_are_read_from_a_file(tmp_path, name, contents):
    write(tmp_path / "images/train/n01440764/part/1.jpg")
    write(tmp_path / "images/train/n01443537/2.jpg")
    write(tmp_path / "images/train/n99999999/3.jpg")
    names = write(tmp_path / name, contents.encode())
    _, records = read(tmp_path / "images", class_names=names)
    assert [record.class_name if isinstance(record, Record) else record.reason for record in records] == [
        "tench",
        "goldfish",
        "folder without a name in class_names",
    ]


@pytest.mark.parametrize("contents", [b"", b"[1, 2]", b"\xff\xfe", b"3"])
def test_an_invalid_file_of_class_names_is_refused(tmp_path, contents):
    names = write(tmp_path / "names.json", contents)
    with pytest.raises(InputError, match="names.json"):
        read(tmp_path, class_names=names)


def test_files_that_are_no_image_of_a_class_are_dropped_with_the_reason(tmp_path):
    write(tmp_path / "lonely.jpg")
    write(tmp_path / "cat/notes.txt")
    write(tmp_path / "cat/1.jpg")
    write(tmp_path / os.fsdecode(b"cat/\xff.jpg"))
    write(tmp_path / "cat/._1.jpg")
    _, records = read(tmp_path)
    assert [record.id for record in records if isinstance(record, Record)] == ["cat/1.jpg"]
    assert {record.id: record.reason.partition(";")[0] for record in records if isinstance(record, Dropped)} == {
        "lonely.jpg": "image in no class's folder",
        "cat/notes.txt": "not an image file by its name",
        "cat/\\udcff.jpg": "image path that is not text",
        "cat/._1.jpg": "hidden file, such as macOS and desktops add",
    }


def test_links_out_of_the_folder_are_followed_only_on_request(tmp_path):
    secret = write(tmp_path / "images-elsewhere/secret.jpg", b"secret")
    write(tmp_path / "images/cat/1.jpg", b"one")
    (tmp_path / "images/cat/2.jpg").symlink_to(secret)
    (tmp_path / "images/cat/3.jpg").symlink_to("1.jpg")
    (tmp_path / "images/dog").symlink_to(tmp_path / "images-elsewhere")
    reader, (folder, one, two, three) = read(tmp_path / "images")
    assert folder == Dropped("dog", "link to a folder; set input.follow_links=true if you trust it")
    assert (reader.image(one), reader.image(three)) == (b"one", b"one")
    with pytest.raises(SampleError, match="follow_links"):
        reader.image(two)
    reader, records = read(tmp_path / "images", follow_links=True)
    assert [reader.image(record) for record in records] == [b"one", b"secret", b"one", b"secret"]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    write(tmp_path / "cat/1.jpg")
    (tmp_path / "cat/loop").symlink_to(tmp_path)
    _, records = read(tmp_path, follow_links=True)
    (tmp_path / "cat/itself").symlink_to("itself")
    assert Dropped("cat/loop", "link to a folder that was read already") in records and len(records) == 2


def test_folders_that_link_to_each_other_are_read_a_bounded_number_of_times(tmp_path):
    for name, other in (("cat", "dog"), ("dog", "cat")):
        write(tmp_path / name / "1.jpg")
        for number in range(8):
            (tmp_path / name / f"to{number}").symlink_to(tmp_path / other)
    _, records = read(tmp_path, follow_links=True)
    assert len(records) < 50 and {"cat/1.jpg", "dog/1.jpg"} <= {record.id for record in records}


def test_large_and_special_files_are_refused_without_reading(tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    (tmp_path / "cat").mkdir()
    (tmp_path / "huge").rename(tmp_path / "cat/huge.jpg")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    write(tmp_path / "cat/gone.jpg")
    reader, records = read(tmp_path)
    (tmp_path / "cat/gone.jpg").unlink()
    for record, reason in zip(records, ("no such image file", "max_image_mb", "no regular file"), strict=True):
        with pytest.raises(SampleError, match=reason):
            reader.image(record)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no files"):
        read(tmp_path)


def test_another_process_reads_the_same(tmp_path, read_in_another_process):
    write(tmp_path / "cat/1.jpg", b"one")
    reader, records = read(tmp_path)
    assert read_in_another_process(ImageFolderConfig(path=tmp_path)) == str(
        [(record, reader.image(record)) for record in records]
    )
