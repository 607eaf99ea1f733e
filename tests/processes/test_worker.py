"""A worker as its parent sees it: its messages, its errors with their types, its death."""

import multiprocessing
import os
import re
import signal
import sys
import time

import pytest

from tests.processes.stopping import stop_in_the_middle_of_sending
from ufork.errors import ConfigError
from ufork.processes.worker import start_worker


@pytest.fixture
def start():
    context, workers = multiprocessing.get_context("forkserver"), []

    def start_one(target, *args):
        workers.append(start_worker(target, *args, context=context, name="helper"))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.kill()


def send_sizes(send, sizes):
    for size in sizes:
        send(bytes(size))


def test_messages_of_any_size_arrive_in_order_and_then_the_end(start):
    sizes = [1, 70_000, 0, 5_000_000, 3]
    worker = start(send_sizes, sizes)
    assert [len(worker.receive(60)) for _ in sizes] == sizes
    with pytest.raises(EOFError):
        worker.receive(60)
    assert worker.describe_end() == "ended with exit code 0 and no message"


class TwoArguments(ValueError):
    def __init__(self, first, second):
        super().__init__(first + second)


def raise_it(send, error):
    raise error() if callable(error) else error


def two_arguments():
    return TwoArguments("a", "b")


def left():
    return SystemExit(0)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError("data.x: unknown"), ConfigError, r"(?m)^data\.x: unknown$"),
        (KeyError("x"), KeyError, "(?m)^'x'$"),
        (two_arguments, RuntimeError, "^TwoArguments: ab\nTraceback"),
        (left, RuntimeError, "^SystemExit: 0"),
    ],
    ids=["ufork's", "another", "cannot be restored", "would end the parent"],
)
def test_an_error_arrives_with_its_type_and_traceback(start, error, kind, text):
    with pytest.raises(kind, match=text) as raised:
        start(raise_it, error).receive(60)
    assert "in raise_it" in "".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


def kill_self(send, number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "described"),
    [
        (signal.SIGKILL, "died by SIGKILL, probably killed by the out-of-memory killer"),
        (signal.SIGSEGV, "died by SIGSEGV"),
    ],
)
def test_a_death_is_described_by_its_signal(start, number, described):
    worker = start(kill_self, number)
    with pytest.raises(EOFError):
        worker.receive(60)
    assert worker.describe_end() == described


def exit_with(send, code):
    os._exit(code)


@pytest.mark.parametrize(("code", "hint"), [(3, ""), (255, "; .* whose fork server has died, as when all .* at once")])
def test_an_exit_without_a_message_is_described_by_its_code(start, code, hint):
    worker = start(exit_with, code)
    with pytest.raises(EOFError):
        worker.receive(60)
    assert re.fullmatch(f"ended with exit code {code} and no message{hint}", worker.describe_end())


def send_half(send):
    send("started")
    stop_in_the_middle_of_sending()
    send(bytes(1000))


def sleep(send):
    send("started")
    time.sleep(600)


@pytest.mark.parametrize(("target", "said"), [(send_half, "stopped in the middle"), (sleep, "sent nothing")])
def test_a_message_that_does_not_come_whole_in_time_is_a_time_out(start, target, said):
    worker = start(target)
    assert worker.receive(60) == "started"
    with pytest.raises(TimeoutError, match=f"{said}.* for 1 s"):
        worker.receive(1.0)


def test_starting_workers_imports_no_heavy_package():
    code = "import sys, ufork.processes.worker_pool, ufork.processes.prefetch; print('torch' in sys.modules)"
    assert os.popen(f'{sys.executable} -c "{code}"').read().strip() == "False"
