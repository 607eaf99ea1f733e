"""`ufork shard` while system calls fail, for real: what it says, what it leaves, and that the same command finishes."""

import errno
import os
import subprocess
import sys

import pytest

from pipelines import cli
from tests.failing_calls import ROOT, build
from tests.toy_input import tiny_png


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection") / "pets"
    (folder / "café").mkdir(parents=True)
    for number in range(6):
        (folder / "café" / f"{number}.png").write_bytes(tiny_png() + bytes([number]))
    return folder


def command(collection, target):
    return ["shard", "images", str(collection), "--to", str(target), "source=pets", "shard_samples=4", "num_workers=1"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def expected(collection, tmp_path_factory):
    target = tmp_path_factory.mktemp("expected") / "train"
    assert cli.main(command(collection, target)) == 0
    return contents(target)


def test_reads_and_writes_of_few_bytes_change_nothing(failing, collection, expected, tmp_path):
    """As on network file systems, and where signals interrupt them."""
    done = failing.run(
        *command(collection, tmp_path / "train"), call="read write", path="pets", error=0, FAIL_BYTES=100
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "train") == expected


def test_modules_of_the_current_folder_are_imported_by_no_process(collection, expected, tmp_path):
    """A user's pickle.py ended the worker processes."""
    (tmp_path / "pickle.py").write_text("raise RuntimeError('imported')")
    program = tmp_path / "bin" / "ufork"
    program.parent.mkdir()
    program.write_text("import sys\nfrom pipelines.cli import main\nif __name__ == '__main__':\n    sys.exit(main())")
    command_line = [sys.executable, program, *command(collection, tmp_path / "train"), "num_workers=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command_line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "train") == expected


@pytest.mark.parametrize(
    ("call", "path", "error"),
    [
        ("write", "generation-00001.tar", errno.EDQUOT),
        ("rename", "manifest.json", errno.EIO),
        ("close", "report.html", errno.EIO),
        ("fsync", ".work", errno.EIO),
        ("mkdir", "fingerprints", errno.EROFS),
        ("open", "plan.json", errno.ESTALE),
        ("read", "done/00001.json", errno.EIO),
        ("open", "pets/café", errno.EMFILE),
    ],
)
def test_a_failing_call_is_one_message_that_names_the_file_and_the_next_start_finishes(
    failing, collection, expected, tmp_path, call, path, error
):
    target = tmp_path / "train"
    failed = failing.run(*command(collection, target), call=call, path=path, error=error)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    message = failed.stderr[failed.stderr.index("ufork shard: ") :]
    assert path in message and message.count("\n") == 1, message
    assert cli.main(command(collection, target)) == 0
    assert contents(target) == expected
