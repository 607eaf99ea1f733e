"""Where a source's files lie: a folder of this machine, or a URL that fsspec reads (s3://, gs://, https://, ...).

    open_storage("folder" | "s3://bucket/folder") -> a small file, parts of large ones, a file from its start on

No URL is ever given to a shell: fsspec opens it, with the packages that it names for its kind.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from ufork.errors import ConfigError, ShardError

_REMEDY = "prepare the data again, or bring the file back"


class Span(NamedTuple):
    """A part of a file."""

    file: str
    start: int
    end: int


class Storage(Protocol):
    """A source's folder; names are within it. Each method raises ShardError where a file cannot be read."""

    def where(self, name: str) -> str:
        """The file in words."""
        ...

    def local_path(self, name: str) -> Path | None:
        """The file on this machine, where it is on it."""
        ...

    def size(self, name: str) -> int:
        """Its bytes."""
        ...

    def contents(self, name: str) -> bytes:
        """All of it."""
        ...

    def parts(self, spans: Sequence[Span]) -> list[bytes]:
        """In the order of `spans`."""
        ...

    def stream(self, name: str) -> IO[bytes]:
        """The file, to be read from its start."""
        ...


def open_storage(folder: Path | str) -> Storage:
    """What lies in `folder`; nothing is read yet.

    Raises:
        ConfigError: a URL of a kind that fsspec does not know, or has no package for.
    """
    return RemoteStorage(str(folder)) if is_url(folder) else LocalStorage(Path(folder))


def is_url(folder: Path | str) -> bool:
    """Whether it is one, and no folder of this machine."""
    return "://" in str(folder)


class LocalStorage:
    """A folder, on a disk or a shared file system. Reads are by `pread`: threads may share one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, int] = {}

    def where(self, name: str) -> str:
        """As told by the protocol, like all the others."""
        return str(self.folder / name)

    def local_path(self, name: str) -> Path:
        """Always there."""
        return self.folder / name

    def size(self, name: str) -> int:
        """Asks the file system."""
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            raise self._fault(name, error) from None

    def contents(self, name: str) -> bytes:
        """Reads it whole."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise self._fault(name, error) from None

    def parts(self, spans: Sequence[Span]) -> list[bytes]:
        """One system call each; the files stay open."""
        return [self._part(*span) for span in spans]

    def _part(self, name: str, start: int, end: int) -> bytes:
        try:
            file = self._files.get(name)
            if file is None:
                file = self._files.setdefault(name, os.open(self.folder / name, os.O_RDONLY))
            return os.pread(file, end - start, start)
        except OSError as error:
            raise self._fault(name, error) from None

    def stream(self, name: str) -> IO[bytes]:
        """Opens it."""
        try:
            return open(self.folder / name, "rb")
        except OSError as error:
            raise self._fault(name, error) from None

    def _fault(self, name: str, error: OSError) -> ShardError:
        return ShardError(f"{self.where(name)}: cannot be read ({error.strerror}); {_REMEDY}")

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind: a process that unpickles this opens its own."""
        return {**vars(self), "_files": {}}

    def __del__(self) -> None:
        """Sources live as long as their process; this is for those that do not."""
        for file in self._files.values():
            os.close(file)


class RemoteStorage:
    """A URL; parts are asked for many at a time, since each takes a round trip."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._system, self._path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"{url}: cannot be opened ({error}); install what it names, or give another URL"
            ) from None

    def where(self, name: str) -> str:
        """Its URL."""
        return f"{self.url}/{name}"

    def local_path(self, name: str) -> None:
        """Never there."""

    def size(self, name: str) -> int:
        """Asks the server."""
        try:
            return int(self._system.info(f"{self._path}/{name}")["size"])
        except Exception as error:  # each kind of server has its own
            raise self._fault(name, error) from None

    def contents(self, name: str) -> bytes:
        """Fetches it whole."""
        try:
            return self._system.cat_file(f"{self._path}/{name}")
        except Exception as error:
            raise self._fault(name, error) from None

    def parts(self, spans: Sequence[Span]) -> list[bytes]:
        """All under way at once, where the kind of server allows."""
        files, starts, ends = (
            [f"{self._path}/{span.file}" for span in spans],
            *zip(*(s[1:] for s in spans), strict=True),
        )
        found = self._system.cat_ranges(files, list(starts), list(ends), on_error="return")
        for span, part in zip(spans, found, strict=True):
            if isinstance(part, Exception):
                raise self._fault(span.file, part)
        return found

    def stream(self, name: str) -> IO[bytes]:
        """Opens it; few range requests, each far ahead."""
        try:
            return self._system.open(f"{self._path}/{name}", "rb")
        except Exception as error:
            raise self._fault(name, error) from None

    def _fault(self, name: str, error: Exception) -> ShardError:
        return ShardError(f"{self.where(name)}: cannot be read ({type(error).__name__}: {error}); {_REMEDY}")
