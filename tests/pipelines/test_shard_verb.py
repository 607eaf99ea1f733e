"""`ufork shard` from the command line: a folder of images to shards, alone or as an array."""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.verbs.shard import share_of
from tests.toy_input import tiny_png
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.source import ShardSource
from ufork.errors import ConfigError
from ufork.vocabulary import Task


@pytest.fixture
def images(tmp_path) -> Path:
    for number in range(12):
        path = tmp_path / "pets" / f"{'cat' if number % 2 else 'big_dog'}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_png() + bytes([number]))
    return tmp_path / "pets"


def arguments(images: Path, target: Path, *more: str) -> list[str]:
    return [
        "shard",
        "images",
        str(images),
        "--to",
        str(target),
        "source=pets",
        "shard_samples=5",
        "num_workers=1",
        *more,
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_of_images_becomes_shards_that_verify(images, tmp_path, capsys):
    target = tmp_path / "shards" / "train"
    assert cli.main(arguments(images, target)) == 0
    source = ShardSource(target, Task.GENERATION)
    assert len(source) == 12 and "big dog" in " ".join(source[number].prompt for number in range(12))
    assert cli.main(["shard", "verify", str(target)]) == 0
    assert "matches its manifest" in capsys.readouterr().out
    assert {"report.html", "contact_sheet.png", "ATTRIBUTION.md"} <= contents(target).keys()


def test_an_array_and_a_merge_make_the_same(images, tmp_path, capsys, monkeypatch):
    assert cli.main(arguments(images, tmp_path / "one" / "train")) == 0
    assert cli.main(arguments(images, tmp_path / "array" / "train", "--task", "1", "--of", "2")) == 0
    assert cli.main(["shard", "merge", str(tmp_path / "array" / "train")]) == 1
    assert (
        f"2 of 3 jobs are not done (0, 2); run `ufork shard write {tmp_path / 'array' / 'train'}`"
        in capsys.readouterr().err
    )
    for name, value in {"ID": "3", "MIN": "3", "COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert cli.main(["shard", "write", str(tmp_path / "array" / "train")]) == 0
    assert not (tmp_path / "array" / "train" / "manifest.json").exists()
    assert cli.main(["shard", "merge", str(tmp_path / "array" / "train")]) == 0
    assert contents(tmp_path / "one" / "train") == contents(tmp_path / "array" / "train")


def test_steps_one_by_one_make_the_same(images, tmp_path):
    values = ("duplicates.exact=true",)
    assert cli.main(arguments(images, tmp_path / "one" / "train", *values)) == 0
    for step in ("record_index", "fingerprints", "write", "merge"):
        assert cli.main(arguments(images, tmp_path / "steps" / "train", *values, "--step", step)) == 0
    assert contents(tmp_path / "one" / "train") == contents(tmp_path / "steps" / "train")


def test_values_may_come_from_a_file(images, tmp_path):
    (tmp_path / "pets.yaml").write_text("source: pets\nlicence: CC0-1.0\nshard_samples: 5\nsplit: heldout\n")
    target = tmp_path / "out"
    command = [
        "shard",
        "images",
        str(images),
        "--to",
        str(target),
        "--config",
        str(tmp_path / "pets.yaml"),
        "num_workers=1",
    ]
    assert cli.main(command) == 0
    manifest = Manifest.load(target)
    assert (manifest.licence, manifest.split, len(manifest.shards)) == ("CC0-1.0", "heldout", 6)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("sources=pets",), "nearest known one is 'source'"),
        (("--task", "1"), "give both or neither"),
        (("--task", "2", "--of", "2"), "task 2 of 2"),
        (("filters.min_side_px=none",), "min_side_px"),
    ],
)
def test_invalid_values_are_named(images, tmp_path, capsys, more, fault):
    assert cli.main(arguments(images, tmp_path / "out", *more)) == 2
    assert fault in capsys.readouterr().err


def test_missing_arguments_and_files_are_named(images, tmp_path, capsys):
    assert cli.main(["shard", "images", str(images), "source=pets"]) == 2
    assert "--to" in capsys.readouterr().err
    assert cli.main(arguments(tmp_path / "nowhere", tmp_path / "out")) == 1
    assert "nowhere" in capsys.readouterr().err
    assert cli.main(["shard", "merge", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "cat", "new/train"])
def test_shards_are_not_written_into_their_collection(images, capsys, name):
    """W: the next command would read them as part of it."""
    assert cli.main(arguments(images, images / name)) == 2
    assert "is inside the collection" in capsys.readouterr().err
    assert not (images / name / ".work").exists()


def test_damage_ends_verify_with_every_fault(images, tmp_path, capsys):
    assert cli.main(arguments(images, tmp_path / "out")) == 0
    for name in ("generation-00000.tar", "understanding-00001.tar"):
        (tmp_path / "out" / name).unlink()
    assert cli.main(["shard", "verify", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "2 faults" in shown and "generation-00000.tar" in shown and "understanding-00001.tar" in shown


def test_the_share_is_from_the_arguments_or_slurm():
    slurm = {
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_ARRAY_TASK_COUNT": "9",
    }
    none, some = argparse.Namespace(task=None, of=None), argparse.Namespace(task=1, of=4)
    assert share_of(none, {}) is None
    assert (share_of(none, slurm).task, share_of(none, slurm).of) == (3, 9)
    assert (share_of(some, slurm).task, share_of(some, slurm).of) == (1, 4)
    with pytest.raises(ConfigError, match="both or neither"):
        share_of(argparse.Namespace(task=None, of=4), {})


def living(group: int) -> list[str]:
    """Processes of the group that have not ended."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            lines.append(path.read_text())
    fields = [line.rpartition(")")[2].split() for line in lines]
    return [
        line
        for line, (state, _, pgrp, *_) in zip(lines, fields, strict=True)
        if pgrp == str(group) and state not in "ZX"
    ]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_all_processes_and_leaves_no_partial_file(tmp_path, number, exit_code):
    for index in range(8000):  # more than are converted before the signal comes, also on a busy machine
        path = tmp_path / "pets" / "dog" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_png())
    target = tmp_path / "out"
    command = arguments(tmp_path / "pets", target, "shard_samples=4", "num_workers=2")
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        deadline = time.monotonic() + 60
        while not list(target.glob("*.tar")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(program.pid, number)
        shown = program.stderr.read()
        assert program.wait(timeout=30) == exit_code, shown
    assert "Traceback" not in shown
    assert list(target.glob("*.tar")) and not list(target.rglob("*.part"))
    while living(program.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not living(program.pid)
