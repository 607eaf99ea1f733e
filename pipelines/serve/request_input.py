"""What a client sends, bounded part by part: its size, the time until all of it is there, and each silence.

    connection -> RequestInput.allow(seconds, bytes) for each part -> io.BufferedReader -> the request

A time-out of the socket alone bounds silences only: a client that sends a byte now and then would stay for ever.
"""

import io
import socket
import time
from typing import Any


class RequestInput(io.RawIOBase):
    """Reads a connection within the limits of the part that is read."""

    def __init__(self, connection: socket.socket, *, idle_seconds: float) -> None:
        """Allows nothing yet; `idle_seconds` is the longest silence, and the connection's time-out otherwise."""
        self._connection, self._idle_seconds = connection, idle_seconds
        self._deadline, self._bytes_left = 0.0, 0

    def allow(self, seconds: float, num_bytes: int) -> None:
        """Sets how long the next part may take from now on, and how many bytes may come from the connection."""
        self._deadline, self._bytes_left = time.monotonic() + seconds, num_bytes

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads what is there, and waits for the first byte of it.

        Raises:
            TimeoutError: the time has passed, or the client was silent.
            ConnectionAbortedError: the client sends more than is allowed.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the client is too slow")
        if self._bytes_left <= 0:
            raise ConnectionAbortedError("the client sends too much")
        self._connection.settimeout(min(seconds, self._idle_seconds))
        try:
            count = self._connection.recv_into(memoryview(buffer)[: self._bytes_left])
        finally:
            self._connection.settimeout(self._idle_seconds)
        self._bytes_left -= count
        return count
