"""Messages through a pipe, read without ever blocking on an incomplete one.

    MessageWriter.send: pickle, 8 bytes of length, contents -> pipe -> MessageReader.read: the message, or None so far

`multiprocessing.Connection.recv` blocks until a message is complete: a writer that stops in the middle of one would
block the reader without limit, even after a wait with a time-out. Everything is copied through the pipe, tensors
too: shared memory would make reading a message depend on a connection to its writer.
"""

import os
import pickle
import struct
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

_LENGTH = struct.Struct("<Q")


class MessageWriter:
    """The writing end; `send` blocks while the pipe is full."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Any) -> None:
        """Sends anything that can be pickled, except None.

        Raises:
            BrokenPipeError: the reader is gone.
            Exception: `message` cannot be pickled; nothing was sent.
        """
        contents = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        for data in (_LENGTH.pack(len(contents)), contents):
            unsent = memoryview(data)
            while unsent:
                unsent = unsent[os.write(self._connection.fileno(), unsent) :]


class MessageReader:
    """The reading end; see `wait_for_messages`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.file = connection.fileno()
        os.set_blocking(self.file, False)
        self._start_reading(bytearray(_LENGTH.size), is_length=True)

    @property
    def is_inside_message(self) -> bool:
        """Whether a message has begun to arrive and is not complete."""
        return not self._is_length or self._num_bytes > 0

    def read(self) -> Any:
        """Reads what is there; returns the message that it completes, or None.

        Raises:
            EOFError: the writer is gone, and nothing complete is left.
        """
        try:
            while True:
                self._fill_buffer()
                if not self._is_length:
                    return self._finish_message()
                self._start_reading(bytearray(_LENGTH.unpack(self._buffer)[0]), is_length=False)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Closes it; a writer gets BrokenPipeError then."""
        self._connection.close()

    def _start_reading(self, buffer: bytearray, *, is_length: bool) -> None:
        self._buffer, self._num_bytes, self._is_length = buffer, 0, is_length

    def _fill_buffer(self) -> None:
        while self._num_bytes < len(self._buffer):
            num_read = os.readv(self.file, [memoryview(self._buffer)[self._num_bytes :]])
            if not num_read:
                raise EOFError
            self._num_bytes += num_read

    def _finish_message(self) -> Any:
        contents = self._buffer
        self._start_reading(bytearray(_LENGTH.size), is_length=True)
        return pickle.loads(contents)


def wait_for_messages(readers: Iterable[MessageReader], timeout_seconds: float | None) -> list[MessageReader]:
    """Waits until at least one reader has something to read, or is at its end; returns those that do."""
    by_file = {reader.file: reader for reader in readers}
    return [by_file[file] for file in wait(list(by_file), timeout_seconds)]  # type: ignore[index]
