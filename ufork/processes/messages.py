"""Messages through a pipe, read without ever blocking on an incomplete one.

    MessageWriter.send: lengths, pickle, arrays -> pipe -> MessageReader.read: the message, or None so far

`multiprocessing.Connection.recv` blocks until a message is complete: a writer that stops in the middle of one would
block the reader without limit, even after a wait with a time-out. Everything is copied through the pipe, tensors
too: shared memory would make reading a message depend on a connection to its writer. Arrays and tensors follow the
pickle as they are (out-of-band buffers of PEP 574), so neither side copies them beside the pipe.
"""

import fcntl
import io
import os
import pickle
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

_LENGTH = struct.Struct("<Q")
PIPE_BYTES = 1 << 20
"""Size that pipes get on Linux instead of 64 KiB: large messages need fewer turns of the two processes."""


class _Pickler(pickle.Pickler):
    """Pickles dense CPU tensors as arrays; torch's own way goes through a file format and copies them several times."""

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(obj) is not torch.Tensor or obj.layout != torch.strided:
            return NotImplemented
        if obj.device.type != "cpu" or obj.requires_grad or not obj.numel() or obj.is_quantized:
            return NotImplemented
        return _tensor_of, (obj.contiguous().flatten().view(torch.uint8).numpy(), obj.dtype, tuple(obj.shape))


def _tensor_of(values: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    import torch

    return torch.from_numpy(values).view(dtype).view(shape)


def _pieces(message: Any) -> list[memoryview]:
    """Returns the pickle of `message` and the arrays inside it, as bytes."""
    arrays: list[pickle.PickleBuffer] = []
    contents = io.BytesIO()
    _Pickler(contents, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=arrays.append).dump(message)
    return [contents.getbuffer(), *(array.raw() for array in arrays)]


class MessageWriter:
    """The writing end; `send` blocks while the pipe is full."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        with suppress(OSError, AttributeError):  # not Linux, or no permission: the default size works too
            fcntl.fcntl(connection.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def send(self, message: Any) -> None:
        """Sends anything that can be pickled, except None.

        Raises:
            BrokenPipeError: the reader is gone.
            Exception: `message` cannot be pickled; nothing was sent.
        """
        pieces = _pieces(message)
        lengths = b"".join(_LENGTH.pack(number) for number in (len(pieces), *map(len, pieces)))
        for unsent in (memoryview(lengths), *pieces):
            while unsent:
                unsent = unsent[os.write(self._connection.fileno(), unsent) :]


class MessageReader:
    """The reading end; see `wait_for_messages`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.file = connection.fileno()
        os.set_blocking(self.file, False)
        self._expect([_LENGTH.size])

    @property
    def is_inside_message(self) -> bool:
        """Whether a message has begun to arrive and is not complete."""
        return self._step > 0 or self._num_bytes > 0

    def read(self) -> Any:
        """Reads what is there; returns the message that it completes, or None.

        Raises:
            EOFError: the writer is gone, and nothing complete is left.
        """
        try:
            for step in range(self._step, 3):
                self._fill_buffers()
                if step == 2:
                    return self._finish_message()
                numbers = [number for (number,) in _LENGTH.iter_unpack(self._buffers[0])]
                self._expect(numbers if step else [_LENGTH.size * numbers[0]], step=step + 1)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Closes it; a writer gets BrokenPipeError then."""
        self._connection.close()

    def _expect(self, sizes: Sequence[int], *, step: int = 0) -> None:
        """Prepares to read: at step 0 the number of pieces, at step 1 their lengths, at step 2 the pieces."""
        self._step, self._num_bytes = step, 0
        self._buffers = [bytearray(size) for size in sizes]
        self._unfilled = [memoryview(buffer) for buffer in self._buffers if buffer]

    def _fill_buffers(self) -> None:
        while self._unfilled:
            num_read = os.readv(self.file, self._unfilled[:1])
            if not num_read:
                raise EOFError
            self._num_bytes += num_read
            self._unfilled[0] = self._unfilled[0][num_read:]
            if not self._unfilled[0]:
                del self._unfilled[0]

    def _finish_message(self) -> Any:
        contents, *arrays = self._buffers
        self._expect([_LENGTH.size])
        return pickle.loads(contents, buffers=arrays)


def wait_for_messages(readers: Iterable[MessageReader], timeout_seconds: float | None) -> list[MessageReader]:
    """Waits until at least one reader has something to read, or is at its end; returns those that do."""
    by_file = {reader.file: reader for reader in readers}
    return [by_file[file] for file in wait(list(by_file), timeout_seconds)]  # type: ignore[index]
