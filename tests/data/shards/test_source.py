"""Sources read by number, and the faults they report."""

import json
import os
import pickle
import shutil

import pytest
import webdataset

from ufork.data.shards.index import ShardIndex, index_path
from ufork.data.shards.manifest import MANIFEST_FILE, Manifest, ShardEntry
from ufork.data.shards.sample import Sample
from ufork.data.shards.source import ShardSource
from ufork.errors import SampleError, ShardError
from ufork.vocabulary import Task


def make_sample(number: int) -> Sample:
    task = Task.GENERATION
    return Sample(id=f"toy-{number}", task=task, source="toy", licence="", image=b"x" * number, image_format="jpg")


@pytest.fixture
def folder(tmp_path):
    """Two shards of three samples as webdataset writes them, without indices."""
    entries = []
    for shard in range(2):
        path = tmp_path / f"{shard}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for number in range(3 * shard, 3 * shard + 3):
                writer.write({"__key__": f"{number:03d}", **make_sample(number).to_members()})
        size = path.stat().st_size
        entries.append(ShardEntry(file=path.name, task=Task.GENERATION, samples=3, bytes=size, checksum="0"))
    Manifest(source="toy", split="train", licence="", attribution="", recipe="", shards=tuple(entries)).save(tmp_path)
    return tmp_path


def test_reads_webdataset_shards_by_number_and_keeps_the_index(folder):
    source = ShardSource(folder, Task.GENERATION)
    assert [source[number].id for number in (5, 0, 3)] == ["toy-5", "toy-0", "toy-3"]
    assert [source[number].image for number in range(len(source))] == [b"x" * number for number in range(6)]
    assert index_path(folder / "0.tar").exists()
    assert source.name == "toy-train-generation"


def test_numbers_out_of_range_are_index_errors(folder):
    source = ShardSource(folder, Task.GENERATION)
    for number in (-1, 6):
        with pytest.raises(IndexError):
            source[number]


def test_a_task_without_shards_is_empty(folder):
    assert len(ShardSource(folder, Task.UNDERSTANDING)) == 0


def test_a_pickled_source_opens_its_own_files(folder):
    source = ShardSource(folder, Task.GENERATION)
    first = source[0].id
    again = pickle.loads(pickle.dumps(source))
    assert again[0].id == first and again[5].id == "toy-5"


def test_a_missing_folder_manifest_or_shard_is_named(folder, tmp_path):
    with pytest.raises(ShardError, match="nowhere"):
        ShardSource(tmp_path / "nowhere", Task.GENERATION)
    (folder / "1.tar").unlink()
    with pytest.raises(ShardError, match=r"1\.tar"):
        ShardSource(folder, Task.GENERATION)


def test_a_truncated_shard_is_named_at_once_and_also_when_cut_later(folder):
    source = ShardSource(folder, Task.GENERATION)
    source[5]
    data = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(data[:2048])
    with pytest.raises(ShardError, match=r"1\.tar: truncated"):
        source[5]
    with pytest.raises(ShardError, match=r"1\.tar: truncated: 2048 bytes"):
        ShardSource(folder, Task.GENERATION)


def test_a_count_that_differs_from_the_manifest_is_named(folder):
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["shards"][0]["samples"] = 4
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"0\.tar: 3 samples, the manifest says 4"):
        ShardSource(folder, Task.GENERATION)[0]


def test_a_sample_of_another_task_is_named(folder):
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["shards"][0]["task"] = "understanding"
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(SampleError, match=r"0\.tar, sample '001': its task is generation"):
        ShardSource(folder, Task.UNDERSTANDING)[1]


def test_a_sample_that_cannot_be_understood_is_named(folder):
    with webdataset.TarWriter(str(folder / "0.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number:03d}", "txt": b"no ufork sample"})
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["shards"][0]["bytes"] = (folder / "0.tar").stat().st_size
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(SampleError, match=r"0\.tar, sample '002'"):
        ShardSource(folder, Task.GENERATION)[2]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}'])
def test_an_invalid_manifest_is_named(folder, text):
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(ShardError, match=MANIFEST_FILE):
        Manifest.load(folder)


def test_check_compares_sizes_and_with_deep_also_checksums(folder):
    manifest = Manifest.load(folder)
    manifest.check(folder)
    with pytest.raises(ShardError, match="checksum"):
        manifest.check(folder, deep=True)


def test_a_read_only_folder_is_read_without_saving_the_index(folder, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "refused by the test")

    monkeypatch.setattr("ufork.files.open", refuse, raising=False)
    assert ShardSource(folder, Task.GENERATION)[4].id == "toy-4"
    assert not index_path(folder / "1.tar").exists()


def test_a_moved_folder_keeps_working(folder, tmp_path):
    ShardSource(folder, Task.GENERATION)[0]
    target = tmp_path / "moved"
    shutil.copytree(folder, target, ignore=lambda *_: {"moved"})
    assert ShardSource(target, Task.GENERATION)[2].id == "toy-2"


def test_an_index_of_another_tar_is_built_anew(folder):
    """Row M12: a saved index that is whole, and does not fit the tar."""
    expected = [ShardSource(folder, Task.GENERATION)[number].image for number in range(6)]
    path = index_path(folder / "1.tar")
    saved = path.read_text()
    columns = json.loads(saved)
    columns["offsets"]["json"], columns["offsets"]["jpg"] = columns["offsets"]["jpg"], columns["offsets"]["json"]
    columns["sizes"]["json"], columns["sizes"]["jpg"] = columns["sizes"]["jpg"], columns["sizes"]["json"]
    path.write_text(json.dumps(columns))
    assert ShardIndex.load(folder / "1.tar"), "it is whole"
    source = ShardSource(folder, Task.GENERATION)
    assert [source[number].image for number in range(6)] == expected
    assert path.read_text() == saved
    columns["sizes"]["jpg"][0] -= 1
    path.write_text(json.dumps(columns))
    assert [sample.image for sample in ShardSource(folder, Task.GENERATION).read(range(6))] == expected


def change_shard(**changes):
    return lambda manifest: manifest["shards"][0].update(changes)


MANIFESTS = {
    "a name that leads outside": (change_shard(file="../../x.tar"), r"shards\.0\.file"),
    "a name that is no text": (change_shard(file=1.5), r"shards\.0\.file"),
    "an unknown task": (change_shard(task="drawing"), r"shards\.0\.task"),
    "a number as text": (change_shard(samples="3"), r"shards\.0\.samples"),
    "a negative number": (change_shard(samples=-3), r"shards\.0\.samples"),
    "more samples than bytes": (change_shard(samples=10**18), "1000000000000000000 samples in"),
    "a shard twice": (lambda manifest: manifest["shards"].append(manifest["shards"][0]), "same shard twice"),
    "no shards": (lambda manifest: manifest.pop("shards"), "shards: Field required"),
    "shards that are a number": (lambda manifest: manifest.update(shards=3), "shards: "),
    "a recipe that is no text": (lambda manifest: manifest.update(recipe=None), "recipe: "),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_wrong_values_is_named(folder, name):
    """Row M12."""
    change, message = MANIFESTS[name]
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    change(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=rf"manifest\.json: .*{message}"):
        ShardSource(folder, Task.GENERATION)


def test_a_shard_that_the_manifest_does_not_list_is_named(folder):
    shutil.copy(folder / "1.tar", folder / "generation-00001.tar")
    with pytest.raises(ShardError, match=r"does not list generation-00001\.tar; remove"):
        ShardSource(folder, Task.GENERATION)


@pytest.mark.parametrize("name", [MANIFEST_FILE, "0.tar.index.json", "0.tar"])
def test_a_pipe_in_place_of_a_file_blocks_nothing(folder, name):
    """Row L2."""
    source = ShardSource(folder, Task.GENERATION)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "0.tar.index.json":
        assert source[0].id == "toy-0"
    else:
        with pytest.raises(ShardError, match="not a regular file|truncated: 0 bytes"):
            source.read([0])
            ShardSource(folder, Task.GENERATION)
