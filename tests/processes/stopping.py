"""A process that stops in the middle of sending a message."""

import os
import signal

_write = os.write


def stop_in_the_middle_of_sending() -> None:
    """Makes the next message of this process stop it (SIGSTOP) when half of a piece is written."""
    os.write = _write_half_and_stop


def _write_half_and_stop(file: int, contents: memoryview) -> int:
    written = _write(file, contents[: len(contents) // 2])
    os.kill(os.getpid(), signal.SIGSTOP)
    return written
