"""A run's folder: its config is recorded section by section, and damage to it never stops a run."""

import json
from pathlib import Path

import pytest
import yaml

from ufork.run_folder import RunFolder

RESOLVED = {"run": {"name": "r"}, "data": {"seed": 1}, "train": {"steps": 5}, "phases": {"all": {}}}


def test_sections_of_earlier_commands_are_kept(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.record(RESOLVED, ("data",))
    run.record({**RESOLVED, "data": {"seed": 2}}, ("train", "phases"))
    assert yaml.safe_load(run.config.read_text()) == RESOLVED
    assert {"ufork", "python", "torch"} <= json.loads(run.versions.read_text()).keys()
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "versions.json"]


DAMAGES = [b"", b"run: {name: ", b"\xff\xfe\0\0", b"- a\n- b\n", b"just text", b"a: !!python/object:os.system {}\n"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_written_anew_with_a_warning(tmp_path, damage, caplog):
    run = RunFolder(tmp_path)
    run.config.write_bytes(damage)
    run.record(RESOLVED, ("train", "phases"))
    assert yaml.safe_load(run.config.read_text()) == {key: RESOLVED[key] for key in ("run", "train", "phases")}
    assert "damaged" in caplog.text and str(run.config) in caplog.text


def test_config_and_versions_survive_a_power_loss(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("ufork.files.sync", synced.append)
    RunFolder(tmp_path).record(RESOLVED, ("train",))
    assert [path.name.partition(".json.")[0].partition(".yaml.")[0] for path in synced] == [
        "config",
        tmp_path.name,
        "versions",
        tmp_path.name,
    ]


def test_a_checkpoint_leads_to_its_run():
    run = RunFolder(Path("/runs/mine"))
    assert RunFolder.of_checkpoint(run.phase("all").checkpoints / "step-00000010") == run


def test_phases_are_the_folders_in_phases(tmp_path):
    run = RunFolder(tmp_path)
    assert run.phases() == []
    run.phase("b").path.mkdir(parents=True)
    run.phase("a").path.mkdir()
    (tmp_path / "phases" / "notes.txt").touch()
    assert run.phases() == [run.phase("a"), run.phase("b")]


def test_the_run_of_a_checkpoint_is_found_through_links(tmp_path):
    run, elsewhere = RunFolder(tmp_path / "run"), tmp_path / "elsewhere"
    run.text_tokenizer.mkdir(parents=True)
    (elsewhere / "step-00000001").mkdir(parents=True)
    run.phase("all").path.mkdir(parents=True)
    run.phase("all").checkpoints.symlink_to(elsewhere)
    assert RunFolder.of_checkpoint(run.phase("all").checkpoints / "step-00000001") == run
    (tmp_path / "real").mkdir()
    run.phase("other").checkpoints.mkdir(parents=True)
    (run.phase("other").checkpoints / "step-00000002").mkdir()
    (tmp_path / "newest").symlink_to(run.phase("other").checkpoints / "step-00000002")
    assert RunFolder.of_checkpoint(tmp_path / "newest") == run
