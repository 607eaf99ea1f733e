"""The shards we write: deterministic, readable by webdataset, whole or absent."""

import errno
import tarfile

import pytest
import webdataset

from ufork.data.shards.index import ShardIndex
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.data.shards.writer import ShardWriter, finish_source, finished_source, start_source
from ufork.errors import StorageError
from ufork.vocabulary import Task


def make_sample(number: int) -> Sample:
    return Sample(
        id=f"toy-{number}",
        task=Task.GENERATION,
        source="toy",
        licence="CC0-1.0",
        image=bytes([number]) * (300 * number),
        image_format="png",
        prompt=f"number {number} ä",
    )


def write_source(folder, *, num_samples: int = 5, recipe: str = "r") -> Manifest:
    start_source(folder)
    with ShardWriter(folder, source="toy", split="train", task=Task.GENERATION, shard_samples=2) as writer:
        for number in range(num_samples):
            writer.write(make_sample(number))
    return finish_source(
        folder,
        source="toy",
        split="train",
        licence="CC0-1.0",
        attribution="an author",
        recipe=recipe,
        entries=writer.entries,
        skipped={"empty": 1},
        details={},
    )


def test_webdataset_reads_our_shards(tmp_path):
    write_source(tmp_path)
    shards = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(5)]
    for number, sample in enumerate(samples):
        members = {name: value for name, value in sample.items() if not name.startswith("__")}
        assert members == make_sample(number).to_members()


def test_headers_are_plain_ustar_without_times(tmp_path):
    write_source(tmp_path)
    with tarfile.open(tmp_path / "generation-00001.tar", format=tarfile.USTAR_FORMAT) as tar:
        infos = tar.getmembers()
    assert [info.name for info in infos] == [f"{n:09d}.{e}" for n in (2, 3) for e in ("json", "png")]
    assert {(info.mtime, info.uid, info.gid, info.mode, info.type) for info in infos} == {(0, 0, 0, 0o644, b"0")}
    assert not any(info.pax_headers for info in infos)


def test_the_written_index_equals_that_of_a_scan(tmp_path):
    write_source(tmp_path)
    for path in sorted(tmp_path.glob("*.tar")):
        written, scanned = ShardIndex.load(path), ShardIndex.build(path)
        assert written.keys == scanned.keys
        for name, column in scanned.offsets.items():
            assert written.offsets[name].tolist() == column.tolist()
            assert written.sizes[name].tolist() == scanned.sizes[name].tolist()


def test_the_same_samples_give_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        write_source(tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3 * 2 + 1


def test_manifest_counts_and_checks(tmp_path):
    manifest = write_source(tmp_path)
    assert [(entry.file, entry.samples) for entry in manifest.shards] == [
        (f"generation-{shard:05d}.tar", samples) for shard, samples in enumerate((2, 2, 1))
    ]
    assert manifest.skipped == {"empty": 1}
    assert Manifest.load(tmp_path) == manifest
    manifest.check(tmp_path, deep=True)


def test_a_source_is_finished_only_by_its_own_recipe_and_with_all_shards(tmp_path):
    assert finished_source(tmp_path, "r") is None
    manifest = write_source(tmp_path)
    assert finished_source(tmp_path, "r") == manifest
    assert finished_source(tmp_path, "another") is None
    (tmp_path / "generation-00001.tar").unlink()
    assert finished_source(tmp_path, "r") is None


def test_starting_again_removes_only_the_files_of_a_source(tmp_path):
    write_source(tmp_path, num_samples=6)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "generation-00009.tar.part").write_text("left by a kill")
    start_source(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_writer_leaves_no_manifest_and_no_partial_shard(tmp_path):
    start_source(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(tmp_path, source="toy", split="train", task=Task.GENERATION, shard_samples=2) as writer,
    ):
        for number in range(3):
            writer.write(make_sample(number))
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generation-00000.tar",
        "generation-00000.tar.index.json",
    ]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_full_disk_and_forbidden_folder_name_the_folder(tmp_path, monkeypatch, code):
    start_source(tmp_path)

    def refuse(*arguments):
        raise OSError(code, "refused by the test")

    monkeypatch.setattr("ufork.files.open", refuse, raising=False)
    writer = ShardWriter(tmp_path, source="toy", split="train", task=Task.GENERATION, shard_samples=1)
    with pytest.raises(StorageError, match=f"{tmp_path}.*refused by the test"):
        writer.write(make_sample(1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_instead_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="taken"):
        start_source(tmp_path / "taken")


def test_a_source_reads_back_in_order(tmp_path):
    write_source(tmp_path)
    source = ShardSource(tmp_path, Task.GENERATION)
    assert [source[number].to_members() for number in range(len(source))] == [
        make_sample(number).to_members() for number in range(5)
    ]
