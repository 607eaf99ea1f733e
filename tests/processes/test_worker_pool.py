"""Jobs by several processes: none lost, none hangs, a dead process is named."""

import os
import signal
import time
from contextlib import closing
from functools import partial

import pytest

from ufork.errors import ShardError, WorkerError
from ufork.processes.worker_pool import run_jobs, run_jobs_in_order


def start_squares(folder):
    (folder / f"opened-{os.getpid()}").touch()
    return square


def square(job: int) -> int:
    return job * job


def start_killed():
    return kill_self


def kill_self(job: int) -> None:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def start_raising(error):
    raise error


def start_slow(folder):
    return partial(work_slowly, folder)


def work_slowly(folder, job: int) -> int:
    draft = folder / f"draft-{job}"
    try:
        draft.touch()
        time.sleep(60 if job else 0)
    finally:
        draft.unlink()
    return os.getpid()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_job_is_done_once_and_each_process_opens_once(tmp_path, num_workers):
    done = dict(run_jobs(range(10), partial(start_squares, tmp_path), num_workers=num_workers))
    assert done == {job: job * job for job in range(10)}
    assert len(list(tmp_path.iterdir())) == num_workers


def start_uneven():
    return uneven


def uneven(job: int) -> int:
    time.sleep(0.3 if job % 2 == 0 else 0)
    return job


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(num_workers):
    assert list(run_jobs_in_order(6, start_uneven, num_workers=num_workers)) == list(range(6))


def test_an_empty_list_of_jobs_has_no_results(tmp_path):
    assert list(run_jobs([], partial(start_squares, tmp_path), num_workers=2)) == []


def test_a_killed_process_is_named_with_its_job():
    with pytest.raises(WorkerError, match=r"worker \d \(pid \d+\) died by SIGKILL, .*, at job 3\."):
        list(run_jobs(range(6), start_killed, num_workers=2))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [(ShardError("a.tar: gone"), ShardError, "a.tar: gone"), (KeyError("x"), KeyError, "'x'")],
)
def test_an_exception_in_a_process_is_raised(error, kind, text):
    with pytest.raises(kind, match=text):
        list(run_jobs(range(6), partial(start_raising, error), num_workers=2))


def test_processes_that_are_ended_clean_up(tmp_path):
    with closing(run_jobs([0, 1], partial(start_slow, tmp_path), num_workers=1 + 1)) as results:
        job, pid = next(results)
        deadline = time.monotonic() + 20
        while not (tmp_path / "draft-1").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert job == 0 and list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
