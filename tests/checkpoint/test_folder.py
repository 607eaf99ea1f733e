"""The folder of checkpoints: which are kept, and that only the newest job finishes one."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from pipelines import cli
from tests.checkpoint.saved import truncate, write_checkpoint
from ufork.checkpoint.folder import CheckpointFolder
from ufork.errors import CheckpointError, StorageError
from ufork.vocabulary import Task


def test_an_unfinished_checkpoint_is_not_used_and_the_next_job_removes_it(folder):
    unfinished = folder.unfinished(40)
    (unfinished / "trunk").mkdir(parents=True)
    assert folder.newest_valid().path == folder.at(30)
    CheckpointFolder(folder.path).take()
    assert not unfinished.exists()


def test_a_replaced_job_finishes_no_checkpoint(folder):
    newer = CheckpointFolder(folder.path)
    newer.take()
    with pytest.raises(CheckpointError, match=r"start 2 of this run, this is start 1\) has taken over"):
        write_checkpoint(folder, 40)
    assert folder.steps() == [10, 20, 30]
    write_checkpoint(newer, 40)
    assert newer.newest_valid().path == newer.at(40)


def test_a_moved_folder_is_an_error_that_names_it(folder):
    folder.path.rename(folder.path.with_name("moved"))
    with pytest.raises(CheckpointError, match="was moved or removed while this job was training"):
        write_checkpoint(folder, 40)


NUM_THREADS = 25


def take_many(path):
    """Takes the folder from threads at once; returns the numbers that they got."""

    def take(_):
        folder = CheckpointFolder(path)
        folder.take()
        return folder.restart

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return list(threads.map(take, range(NUM_THREADS)))


def test_jobs_that_open_the_folder_at_once_get_different_numbers(tmp_path):
    """200 jobs in 8 processes; the newest alone can finish a checkpoint."""
    path = tmp_path / "checkpoints"
    with ProcessPoolExecutor(8, mp_context=get_context("forkserver")) as processes:
        numbers = [number for taken in processes.map(take_many, [path] * 8) for number in taken]
    assert sorted(numbers) == list(range(1, 8 * NUM_THREADS + 1))
    for restart in numbers:
        folder = CheckpointFolder(path)
        folder.restart = restart
        if restart == max(numbers):
            assert write_checkpoint(folder, 10).is_dir()
        else:
            with pytest.raises(CheckpointError, match="has taken over"):
                write_checkpoint(folder, 10)


def test_a_slow_job_does_not_remove_what_a_newer_one_is_writing(folder):
    newer = CheckpointFolder(folder.path)
    newer.take()
    (newer.unfinished(40) / "trunk").mkdir(parents=True)
    folder._remove_left_overs()
    assert newer.unfinished(40).is_dir()


def test_a_damaged_checkpoint_does_not_displace_valid_ones(folder):
    truncate(folder.at(30))
    assert folder.set_aside(30).is_dir()
    write_checkpoint(folder, 25)
    folder.prune(keep=1)
    assert folder.newest_valid().path == folder.at(25)
    write_checkpoint(folder, 30)
    assert folder.newest_valid().path == folder.at(30)


def test_pruning_by_command_never_leaves_only_a_damaged_checkpoint(tmp_path, capsys):
    folder = CheckpointFolder(tmp_path / "phases" / "joint" / "checkpoints")
    folder.take()
    for step in (10, 20):
        write_checkpoint(folder, step)
    truncate(folder.at(20))
    assert cli.main(["checkpoint", "verify", str(tmp_path)]) == 1
    assert cli.main(["checkpoint", "prune", str(tmp_path), "--keep", "1"]) == 0
    assert folder.newest_valid().path == folder.at(10)
    assert cli.main(["checkpoint", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder.at(10)}  0 MB  colocated, tp 1"


@pytest.mark.parametrize(
    ("keep", "every", "left"), [(1, 0, [30]), (2, 0, [20, 30]), (9, 0, [10, 20, 30]), (1, 10, [10, 20, 30]), (0, 0, [])]
)
def test_old_checkpoints_are_removed(folder, keep, every, left):
    assert sorted(folder.prune(keep=keep, keep_every_steps=every) + left) == [10, 20, 30]
    assert folder.steps() == left
    assert not list(folder.path.glob("*.unfinished"))


def test_the_best_by_a_task_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.take()
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0), (40, 1.5), (50, 4.0)):
        write_checkpoint(folder, step, {Task.GENERATION: loss, Task.UNDERSTANDING: -loss})
    assert folder.prune(keep=1, keep_best=2, best_by=Task.GENERATION) == [10, 30]
    assert folder.prune(keep=1, keep_best=1, best_by=Task.UNDERSTANDING) == [20, 40], "the newest is the best one too"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/checkpoints"):
        CheckpointFolder(tmp_path / "file" / "checkpoints").take()


def test_exporting_a_folder_that_is_no_checkpoint_names_it(tmp_path, capsys, monkeypatch):
    for given in (str(tmp_path), "/", "."):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["checkpoint", "export", given, "--output", str(tmp_path / "out")]) == 1
        assert "state.json: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["used", ""])
def test_exporting_writes_over_no_folder(tmp_path, capsys, monkeypatch, name):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["checkpoint", "export", str(tmp_path / "step-00000001"), "--output", name]) == 1
    assert "not empty; choose another folder" in capsys.readouterr().err
