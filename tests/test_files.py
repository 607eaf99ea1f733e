"""Files written whole or not at all: what a failure, a link or another process leaves."""

import errno
import os

import pytest

from ufork.errors import StorageError
from ufork.files import (
    DRAFT_SUFFIX,
    checksum_of,
    draft_of,
    make_folder,
    open_regular,
    read_at,
    read_bounded,
    read_object,
    whole_file,
    whole_folder,
    write_whole,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_text_and_bytes_replace_the_old_file(tmp_path, durable):
    path = tmp_path / "a.json"
    write_whole(path, "größer", durable=durable)
    assert path.read_bytes() == "größer".encode()
    write_whole(path, b"\0\xff", durable=durable)
    assert path.read_bytes() == b"\0\xff"
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, failure):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises((StorageError, KeyboardInterrupt)) as raised, whole_file(path) as file:
        file.write(b"half")
        raise failure
    assert path.read_text() == "old" and names_in(tmp_path) == ["a.json"]
    if isinstance(failure, OSError):
        assert str(raised.value) == (
            f"{path}: cannot be written (No space left on device); free space, permit writing, or choose another folder"
        )


def test_the_remedy_names_what_the_caller_can_choose(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="or choose another --out$"):
        write_whole(tmp_path / "file" / "a.png", b"", choose="another --out")
    with pytest.raises(StorageError, match="file/folder: cannot be written"):
        make_folder(tmp_path / "file" / "folder")


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("victim")
    (tmp_path / "a.json").symlink_to("victim")
    write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "victim").read_text() == "victim"
    assert (tmp_path / "a.json").read_text() == "new" and not (tmp_path / "a.json").is_symlink()


def test_a_link_at_the_temporary_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ufork.files.secrets.token_hex", lambda _: "guessed")
    (tmp_path / f"a.json.guessed{DRAFT_SUFFIX}").symlink_to("victim")
    with pytest.raises(StorageError, match="File exists"):
        write_whole(tmp_path / "a.json", "new")
    assert not (tmp_path / "victim").exists()


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_library_that_fails_keeps_the_old_file(tmp_path):
    write_whole(tmp_path / "a", "old")
    with pytest.raises(ValueError, match="library"), draft_of(tmp_path / "a") as draft:
        draft.write_text("half")
        raise ValueError("library")
    assert (tmp_path / "a").read_text() == "old" and names_in(tmp_path) == ["a"]


def test_the_first_of_two_processes_that_make_a_folder_wins(tmp_path):
    with whole_folder(tmp_path / "index") as draft:
        (draft / "mine").touch()
        with whole_folder(tmp_path / "index") as other:
            (other / "other").touch()
    assert names_in(tmp_path) == ["index"] and names_in(tmp_path / "index") == ["other"]


def test_a_folder_that_fails_is_removed(tmp_path):
    with pytest.raises(StorageError, match="index: cannot be written"), whole_folder(tmp_path / "index") as draft:
        (draft / "a").touch()
        raise OSError(errno.EIO, "Input/output error")
    assert names_in(tmp_path) == []


def test_a_checksum_is_that_of_xxhsum(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"")
    assert checksum_of(path) == "99aa06d3014798d86001c324468d497f", "XXH3 of nothing, by its own documentation"


def test_a_file_is_read_whole_although_each_call_reads_little(tmp_path, monkeypatch):
    """As a signal, a network file system or the limit of 2 GiB a call makes them."""
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: read(file, min(size, 7), offset))
    assert read_bounded(path, 100) == bytes(range(100))
    with open(path, "rb") as file:
        assert read_at(file.fileno(), 20, 90) == bytes(range(90, 100)), "up to the end"


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    with pytest.raises(OSError, match="git lfs pull"):
        open_regular(tmp_path / "pointer")


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b"\xff\xfe{}", b"[" * 10**5, b'{"a":' * 10**5, b'{"a": ' + b"9" * 10**4 + b"}"]
)
def test_what_is_no_json_object_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="."):
        read_object(tmp_path / "a.json")


def test_a_json_object_is_read_up_to_a_size(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_object(tmp_path / "a.json") == {"a": [1]}
    with pytest.raises(OSError, match="10 bytes, more than 9"):
        read_object(tmp_path / "a.json", max_bytes=9)
