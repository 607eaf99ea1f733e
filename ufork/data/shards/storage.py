"""Files of a source: in a folder of this machine, or at a URL that fsspec reads (s3://, gs://, https://, ...).

    open_storage("folder" | "s3://bucket/folder") -> whole small files, spans of large ones, a file from its start

No URL is passed to a shell: fsspec opens it, and needs the package that it names for the URL's protocol.
"""

import io
import resource
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar

from ufork.errors import ConfigError, ShardError
from ufork.files import open_regular, read_at, read_bounded
from ufork.redaction import has_credentials, redacted

_REMEDY = "prepare the data again, or restore the file"
ANSWER_SECONDS = 15.0
SLOWEST_BYTES_PER_SECOND = 1e6
"""A server may take ANSWER_SECONDS, and the time that the bytes take at this rate."""
_PIECE_BYTES = 8 * 2**20
_STREAM_BYTES = 2**20
_MOST_OPEN_FILES = 4096
"""Files that a source keeps open where the system allows any number."""

Answer = TypeVar("Answer")


class Span(NamedTuple):
    """A range of bytes of a file."""

    file: str
    start: int
    end: int


class Storage(Protocol):
    """A source's folder; names are relative to it. Every method raises ShardError when a file cannot be read."""

    def where(self, name: str) -> str:
        """Path or URL of a file, for messages."""
        ...

    def local_path(self, name: str) -> Path | None:
        """Path of a file on this machine; None if it is elsewhere."""
        ...

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        ...

    def contents(self, name: str, max_bytes: int) -> bytes:
        """Reads a whole file, which has at most `max_bytes`."""
        ...

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """Reads the bytes of each span, in the order of `spans`; fewer if the file ends before."""
        ...

    def stream(self, name: str) -> IO[bytes]:
        """Opens a file, to be read from its start."""
        ...


def open_storage(folder: Path | str) -> Storage:
    """Returns the storage at a folder or URL; reads nothing yet.

    Raises:
        ConfigError: fsspec does not know the URL's protocol, or its package is missing.
    """
    return RemoteStorage(str(folder)) if is_url(folder) else LocalStorage(Path(folder))


def is_url(folder: Path | str) -> bool:
    """Whether `folder` is a URL and no folder of this machine."""
    return "://" in str(folder)


class LocalStorage:
    """A folder, on a disk or a shared file system. Reads use `pread`, so that threads may share it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened = lru_cache(_most_open_files())(partial(_OpenFile, folder))

    def where(self, name: str) -> str:
        """Path of a file, for messages."""
        return str(self.folder / name)

    def local_path(self, name: str) -> Path:
        """Path of a file."""
        return self.folder / name

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            raise self._fault(name, error) from None

    def contents(self, name: str, max_bytes: int) -> bytes:
        """Reads a whole file, which has at most `max_bytes`."""
        try:
            return read_bounded(self.folder / name, max_bytes)
        except OSError as error:
            raise self._fault(name, error) from None

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """Reads spans by one system call each; the files read last stay open."""
        return [self._read_span(*span) for span in spans]

    def _read_span(self, name: str, start: int, end: int) -> bytes:
        try:
            return self._opened(name).read(start, end)
        except OSError as error:
            raise self._fault(name, error) from None

    def stream(self, name: str) -> IO[bytes]:
        """Opens a file."""
        try:
            return open(open_regular(self.folder / name), "rb")
        except OSError as error:
            raise self._fault(name, error) from None

    def _fault(self, name: str, error: OSError) -> ShardError:
        return ShardError(f"{self.where(name)}: cannot be read ({error.strerror}); {_REMEDY}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Omits the open files; a process that unpickles this opens its own."""
        return LocalStorage, (self.folder,)


class _OpenFile:
    """A file that is closed when no thread uses it any more."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = open(open_regular(folder / name), "rb", buffering=0)

    def read(self, start: int, end: int) -> bytes:
        return read_at(self._file.fileno(), end - start, start)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it could not be opened; the disk fails
            self._file.close()


def _most_open_files() -> int:
    """Files that a source keeps open: a few sources may take half of the process's limit (`ulimit -n`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(limit // 16, _MOST_OPEN_FILES) if limit > 0 else _MOST_OPEN_FILES


class RemoteStorage:
    """A URL; many spans are requested at a time, since each request takes a round trip."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._system, self._path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                redacted(f"{url}: cannot be opened ({error}); install what it names, or give another URL")
            ) from None

    def where(self, name: str) -> str:
        """URL of a file, without credentials."""
        return redacted(f"{self.url}/{name}")

    def local_path(self, name: str) -> None:
        """Returns None: no file is on this machine."""

    def size(self, name: str) -> int:
        """Size of a file in bytes; one request."""
        return self._asked(name, 0, lambda: int(self._system.info(f"{self._path}/{name}")["size"]))

    def contents(self, name: str, max_bytes: int) -> bytes:
        """Fetches a whole file, which has at most `max_bytes`; one that is large in pieces."""
        if (size := self.size(name)) > max_bytes:
            raise ShardError(f"{self.where(name)}: {size} bytes, more than {max_bytes}; {_REMEDY}")
        if size <= _PIECE_BYTES:
            return self._complete(name, size, lambda: self._system.cat_file(f"{self._path}/{name}"))
        starts = range(0, size, _PIECE_BYTES)
        return b"".join(self._piece(name, start, min(start + _PIECE_BYTES, size)) for start in starts)

    def _piece(self, name: str, start: int, end: int) -> bytes:
        return self._complete(
            name, end - start, lambda: self._system.cat_file(f"{self._path}/{name}", start=start, end=end)
        )

    def read_spans(self, spans: Sequence[Span]) -> list[bytes]:
        """Requests all spans at once, if the protocol allows it."""
        paths = [f"{self._path}/{span.file}" for span in spans]
        starts, ends = [span.start for span in spans], [span.end for span in spans]
        found = self._asked(
            spans[0].file,
            sum(ends) - sum(starts),
            lambda: self._system.cat_ranges(paths, starts, ends, on_error="return"),
        )
        for span, contents in zip(spans, found, strict=True):
            if isinstance(contents, Exception):
                raise self._fault(span.file, contents)
            self._require_size(span.file, span.end - span.start, len(contents))
        return found

    def stream(self, name: str) -> IO[bytes]:
        """Opens a file; reads ahead by few large range requests."""
        file = self._asked(name, 0, lambda: self._system.open(f"{self._path}/{name}", "rb"))
        return io.BufferedReader(_Stream(lambda size: self._asked(name, size, lambda: file.read(size))), _STREAM_BYTES)

    def _complete(self, name: str, num_bytes: int, ask: Callable[[], bytes]) -> bytes:
        contents = self._asked(name, num_bytes, ask)
        self._require_size(name, num_bytes, len(contents))
        return contents

    def _require_size(self, name: str, asked: int, found: int) -> None:
        if found < asked:
            raise ShardError(f"{self.where(name)}: truncated: {found} of {asked} bytes arrived; {_REMEDY}")
        if found > asked:
            raise ShardError(
                f"{self.where(name)}: {found} bytes instead of {asked}; its server sends no parts of files: set"
                " reader: stream for this source, or copy it to a disk"
            )

    def _asked(self, name: str, num_bytes: int, ask: Callable[[], Answer]) -> Answer:
        """Returns what the server answers. A thread waits for it, which no protocol limits in the same way."""
        answers: list[Answer | Exception] = []

        def wait() -> None:
            try:
                answers.append(ask())
            except Exception as error:  # each kind of server has its own
                answers.append(error)

        thread = threading.Thread(target=wait, daemon=True, name="storage")
        thread.start()
        thread.join(seconds := ANSWER_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND)
        if not answers:
            raise ShardError(
                f"{self.where(name)}: no complete answer for {num_bytes} bytes within {seconds:.0f} s; run the same"
                " command again, or copy the source to a disk",
                timed_out=True,
            )
        if isinstance(answers[0], Exception):
            raise self._fault(name, answers[0])
        return answers[0]

    def _fault(self, name: str, error: Exception) -> ShardError:
        said = f"{type(error).__name__}: {error}"
        if has_credentials(self.url):  # some file systems name the path only, which begins with them
            said = said.replace(self._path, redacted(self.url))
        return ShardError(f"{self.where(name)}: cannot be read ({redacted(said)}); {_REMEDY}")


class _Stream(io.RawIOBase):
    """What a function reads, as a file."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        contents = self._read(len(buffer))
        buffer[: len(contents)] = contents
        return len(contents)
