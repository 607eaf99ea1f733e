"""Every kind of damage to shards is found and named."""

import dataclasses
import json
import shutil

import pytest

from data_prep.sharding.run import shard
from data_prep.sharding.verify import verify_shards
from tests.toy_input import opener, toy_shard_config
from ufork.data.shards.index import ShardIndex, index_path
from ufork.data.shards.manifest import Manifest
from ufork.errors import ShardError
from ufork.files import checksum_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = toy_shard_config(60, shard_samples=20)
    shard(config, folder, opener(config))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "shards")


def accept(folder) -> None:
    """Makes manifest and indices agree with the tars, so that only their contents are at fault."""
    manifest = Manifest.load(folder)
    entries = []
    for entry in manifest.shards:
        path = folder / entry.file
        index_path(path).unlink()
        index = ShardIndex.build(path)
        index.save(path)
        size = path.stat().st_size
        entries.append(dataclasses.replace(entry, bytes=size, samples=len(index), checksum=checksum_of(path)))
    dataclasses.replace(manifest, shards=tuple(entries)).save(folder)


def change(path, old: bytes, new: bytes) -> None:
    assert len(old) == len(new)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_undamaged_shards_have_no_fault(whole, num_workers):
    assert verify_shards(whole, num_workers=num_workers) == []


def test_a_missing_shard_is_named(folder):
    (folder / "generation-00001.tar").unlink()
    (fault,) = verify_shards(folder)
    assert "generation-00001.tar" in fault and "cannot be read" in fault


def test_a_truncated_shard_is_named(folder):
    path = folder / "understanding-00000.tar"
    path.write_bytes(path.read_bytes()[:-4096])
    (fault,) = verify_shards(folder)
    assert "understanding-00000.tar" in fault and "truncated" in fault


def test_a_changed_byte_of_an_image_is_found_by_the_checksum(folder):
    path = folder / "generation-00000.tar"
    change(path, b"IEND", b"IENE")
    (fault,) = verify_shards(folder)
    assert "generation-00000.tar" in fault and "checksum" in fault


def test_an_index_of_another_tar_and_a_missing_one_are_named(folder):
    shutil.copy(folder / "generation-00000.tar.index.json", folder / "generation-00001.tar.index.json")
    (folder / "generation-00000.tar.index.json").unlink()
    one, other = verify_shards(folder)
    assert "generation-00000.tar.index.json is missing" in one and "generation-00001.tar.index.json" in other


def test_an_index_with_wrong_offsets_is_named(folder):
    path = folder / "generation-00000.tar.index.json"
    columns = json.loads(path.read_text())
    columns["sizes"]["json"][0] -= 1
    path.write_text(json.dumps(columns))
    (fault,) = verify_shards(folder)
    assert "generation-00000.tar.index.json does not match the tar" in fault


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b'"task":"generation"', b'"task":"operations"', "'task' should be one of"),
        (b'{"id":"toy-train-', b'{"id" "toy-train-', "its JSON cannot be read"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named(folder, old, new, expected):
    change(folder / "generation-00001.tar", old, new)
    accept(folder)
    (fault,) = verify_shards(folder)
    assert "generation-00001.tar" in fault and expected in fault


def test_a_sample_of_another_task_is_named(folder):
    shutil.copy(folder / "understanding-00000.tar", folder / "generation-00000.tar")
    accept(folder)
    faults = verify_shards(folder)
    assert any("task understanding, expected generation as its shard" in fault for fault in faults)


def test_ids_of_more_than_one_sample_are_named(folder):
    shutil.copy(folder / "generation-00000.tar", folder / "generation-00001.tar")
    accept(folder)
    faults = verify_shards(folder)
    (copied,) = [entry for entry in Manifest.load(folder).shards if entry.file == "generation-00000.tar"]
    assert len(faults) == copied.samples
    assert all("id of more than one sample" in fault for fault in faults)


def test_a_wrong_number_of_samples_is_named(folder):
    manifest = Manifest.load(folder)
    first, *rest = manifest.shards
    dataclasses.replace(manifest, shards=(dataclasses.replace(first, samples=1), *rest)).save(folder)
    (fault,) = verify_shards(folder)
    assert f"{first.samples} samples, expected 1 by the manifest" in fault


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ShardError, match="manifest"):
        verify_shards(tmp_path)
