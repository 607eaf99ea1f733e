"""Preparing sources: reproducible bytes, finished sources kept, errors named."""

import re

import pytest

from data_prep.demo import prepare as prepare_module
from data_prep.demo.prepare import PrepareConfig, prepare
from data_prep.demo.scenes import SceneSource
from data_prep.inputs.skipped_input import SkippedInput
from ufork.data.shards.manifest import MANIFEST_FILE
from ufork.data.shards.source import ShardSource
from ufork.data.shards.writer import ATTRIBUTION_FILE
from ufork.errors import ConfigError, StorageError
from ufork.vocabulary import Task

VALUES = {
    "scenes": {"num_kinds": 4, "num_tints": 2, "num_train_per_task": 30, "num_heldout_per_task": 12},
    "emoji": {"num_train_per_task": 10, "num_heldout_per_task": 5},
    "shard_samples": 16,
    "num_workers": 1,
}
FOLDERS = ("scenes/train", "scenes/heldout", "emoji/train", "emoji/heldout")


def make_config(**changes) -> PrepareConfig:
    return PrepareConfig.from_mapping({**VALUES, **changes}, origin="recipe.yaml")


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, prepare(make_config(), folder, seed=0)


def test_makes_every_source_and_split(prepared):
    folder, manifests = prepared
    assert [f"{manifest.source}/{manifest.split}" for manifest in manifests] == list(FOLDERS)
    for name, manifest, count in zip(FOLDERS, manifests, (30, 12, 10, 5), strict=True):
        for task in Task:
            source = ShardSource(folder / name, task)
            assert len(source) == manifest.num_samples(task) == count
            samples = [source[number] for number in range(count)]
            assert len({sample.id for sample in samples}) == count
            assert all(bool(sample.prompt) == (task == Task.GENERATION) for sample in samples)
            assert all(bool(sample.turns) == (task == Task.UNDERSTANDING) for sample in samples)
        manifest.check(folder / name, deep=True)


def test_the_manifest_records_the_vocabulary_and_skipped_inputs(prepared):
    scenes, _, emoji, _ = prepared[1]
    assert scenes.details["kinds"] == ["dog", "bus", "tree", "apple"]
    assert scenes.details["colours"] == {"red": [225, 25, 30], "blue": [30, 70, 235]}
    assert emoji.skipped["no name"] > 0


def test_attribution_names_authors_licence_and_sources(prepared):
    text = (prepared[0] / ATTRIBUTION_FILE).read_text()
    for words in ("Twemoji", "Twitter, Inc and other contributors", "CC-BY 4.0", "creativecommons.org", "tinted"):
        assert words in text
    assert "scenes, emoji" in text


def test_the_bytes_depend_on_the_seed_but_not_on_the_workers(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_CHUNK_SAMPLES", 7)
    monkeypatch.setattr(prepare_module, "_FEW_CHUNKS", 0)
    scenes_only = {"emoji": None, "num_workers": 2}
    prepare(make_config(**scenes_only), tmp_path / "same", seed=0)
    expected = {name: data for name, data in contents(prepared[0]).items() if name.startswith("scenes")}
    found = {name: data for name, data in contents(tmp_path / "same").items() if name != ATTRIBUTION_FILE}
    assert found == expected
    prepare(make_config(emoji=None), tmp_path / "other", seed=1)
    assert (
        contents(tmp_path / "other")["scenes/train/generation-00000.tar"]
        != expected["scenes/train/generation-00000.tar"]
    )


def test_a_finished_source_is_kept_and_a_changed_one_made_again(tmp_path, monkeypatch):
    only_scenes = {"emoji": None}
    prepare(make_config(**only_scenes), tmp_path, seed=0)
    before = contents(tmp_path)
    made = []
    original = prepare_module._make

    def watched(section, seed, split, *rest):
        made.append(split)
        return original(section, seed, split, *rest)

    monkeypatch.setattr(prepare_module, "_make", watched)
    prepare(make_config(**only_scenes, num_workers=2), tmp_path, seed=0)
    assert made == [] and contents(tmp_path) == before
    prepare(make_config(emoji=None, scenes={**VALUES["scenes"], "num_heldout_per_task": 6}), tmp_path, seed=0)
    assert made == ["heldout"]
    (tmp_path / "scenes/train" / "understanding-00001.tar").unlink()
    prepare(make_config(emoji=None, scenes={**VALUES["scenes"], "num_heldout_per_task": 6}), tmp_path, seed=0)
    assert made == ["heldout", "train"]


def test_a_source_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    original = SceneSource.sample

    def stop(self, split, task, number):
        if number == 20:
            raise KeyboardInterrupt
        return original(self, split, task, number)

    monkeypatch.setattr(SceneSource, "sample", stop)
    monkeypatch.setattr(prepare_module, "_CHUNK_SAMPLES", 5)
    with pytest.raises(KeyboardInterrupt):
        prepare(make_config(emoji=None), tmp_path, seed=0)
    assert (tmp_path / "scenes/train/understanding-00000.tar").exists()
    assert not (tmp_path / "scenes/train" / MANIFEST_FILE).exists()
    monkeypatch.undo()
    manifests = prepare(make_config(emoji=None), tmp_path, seed=0)
    assert manifests[0].num_samples(Task.GENERATION) == 30


def test_unusable_inputs_are_counted_by_reason(tmp_path, monkeypatch):
    original = SceneSource.sample

    def skip_some(self, split, task, number):
        if number % 10 == 0:
            raise SkippedInput("tenth")
        return original(self, split, task, number)

    monkeypatch.setattr(SceneSource, "sample", skip_some)
    manifest = prepare(make_config(emoji=None), tmp_path, seed=0)[0]
    assert manifest.skipped == {"tenth": 6}
    assert manifest.num_samples(Task.GENERATION) == 27


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / "taken"))):
        prepare(make_config(), tmp_path / "taken", seed=0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"scens": {}}, "nearest known one is 'scenes'"),
        ({"shard_samples": 0}, "shard_samples"),
        ({"emoji": 3}, "emoji"),
    ],
)
def test_errors_in_the_recipe_are_named(change, fault):
    with pytest.raises(ConfigError, match=fault):
        make_config(**change)
