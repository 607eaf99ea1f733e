"""Sources at a URL are read like those in a folder, and no URL runs a command."""

import io
import os
import pickle
import resource
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem

from tests.tiny import write_codes_source
from ufork.data.shards import storage
from ufork.data.shards.sample import Sample
from ufork.data.shards.sequential_source import SequentialSource
from ufork.data.shards.source import ShardSource
from ufork.data.shards.storage import Span, open_storage
from ufork.errors import ConfigError, ShardError
from ufork.vocabulary import Task


@pytest.fixture
def folder(tmp_path):
    write_codes_source(tmp_path / "one", num_samples=12)
    return tmp_path / "one"


@pytest.fixture
def url(folder):
    """The same files in fsspec's memory."""
    memory, path = fsspec.filesystem("memory"), f"/{uuid.uuid4()}/one"
    memory.put(f"{folder}/", path, recursive=True)
    yield f"memory:/{path}"
    memory.rm(path, recursive=True)


def contents(source):
    return [(s.id, s.prompt, s.codes.tobytes()) for s in source.read(range(len(source)))]


@pytest.mark.parametrize("kind", [ShardSource, SequentialSource])
def test_a_url_has_the_samples_of_the_folder(kind, folder, url):
    expected = contents(ShardSource(folder, Task.GENERATION))
    assert len(expected) == 12
    assert contents(kind(url, Task.GENERATION)) == expected
    assert contents(kind(f"file://{folder}", Task.GENERATION)) == expected


def test_a_missing_index_of_a_url_is_built(folder, url):
    memory = fsspec.filesystem("memory")
    for path in memory.glob(f"{url}/*.index.json"):
        memory.rm(path)
    assert contents(ShardSource(url, Task.GENERATION)) == contents(ShardSource(folder, Task.GENERATION))


@pytest.mark.parametrize("kind", [ShardSource, SequentialSource])
def test_a_shard_that_vanishes_from_a_url_is_named(kind, url):
    source = kind(url, Task.GENERATION)
    fsspec.filesystem("memory").rm(f"{url}/{source.entries[0].file}")
    with pytest.raises(ShardError, match=rf"{source.entries[0].file}: cannot be read"):
        source.read([0])
    with pytest.raises(ShardError, match=r"one/.*: cannot be read"):
        kind(url, Task.GENERATION)


def test_spans_come_in_the_order_of_the_request(folder, url):
    spans = [Span("manifest.json", 4, 9), Span("manifest.json", 0, 3)]
    assert open_storage(url).read_spans(spans) == open_storage(folder).read_spans(spans)


def test_a_url_of_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"^warp://x/y: cannot be opened \(.*warp"):
        ShardSource("warp://x/y", Task.GENERATION)


@pytest.mark.parametrize("url", ["pipe:touch {}", "pipe://touch {}", "|touch {}", "exec://touch {}"])
def test_no_url_runs_a_command(url, tmp_path):
    for kind in (ShardSource, SequentialSource):
        with pytest.raises((ConfigError, ShardError)):
            kind(url.format(tmp_path / "made"), Task.GENERATION)
    assert not list(tmp_path.iterdir())


def test_more_shards_than_open_files_are_allowed_are_read(tmp_path, monkeypatch):
    write_codes_source(tmp_path / "many", num_samples=100)
    source = ShardSource(tmp_path / "many", Task.GENERATION)
    expected = contents(source)
    assert len(source.entries) == 5
    monkeypatch.setattr(resource, "getrlimit", lambda _: (48, 48))
    limited = ShardSource(tmp_path / "many", Task.GENERATION)
    before = len(os.listdir("/proc/self/fd"))
    assert contents(limited) == expected
    assert len(os.listdir("/proc/self/fd")) - before <= 48 // 16
    assert contents(pickle.loads(pickle.dumps(limited))) == expected


class FaultyServer(AbstractFileSystem):
    """A folder as a server has it that misbehaves as `fault` says for names that begin as `of`."""

    protocol = "faulty"
    fault = of = ""
    goes_on = threading.Event()

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("faulty://")

    def answer(self, path, start=None, end=None):
        fault = self.fault if Path(path).name.startswith(self.of) else ""
        data = Path(path).read_bytes()
        if fault == "fails":
            raise RuntimeError("503, message='Service Unavailable'")
        if fault == "stalls":
            self.goes_on.wait(20)
        if fault == "sends a page":
            data = b"<html>Please sign in</html>"
        if fault == "sends another file":
            data = bytes(len(data))
        if fault != "sends no parts":
            data = data[start:end]
        return data[: len(data) // 2] if fault == "sends half" else data

    def info(self, path, **_):
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def cat_file(self, path, start=None, end=None, **_):
        return self.answer(path, start, end)

    def _open(self, path, mode="rb", **_):
        return io.BytesIO(self.answer(path))


@pytest.fixture
def server(folder, monkeypatch):
    fsspec.register_implementation("faulty", FaultyServer, clobber=True)
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(FaultyServer, "goes_on", threading.Event())
    yield f"faulty://{folder}"
    FaultyServer.goes_on.set()


FAULTS = {
    "fails": "cannot be read .*Service Unavailable",
    "sends half": "cannot be read|truncated",
    "stalls": "no complete answer for .* within 0 s",
    "sends a page": "cannot be read|truncated",
    "sends another file": "not a manifest|0 samples|ends after 0 samples",
}


@pytest.mark.parametrize("kind", [ShardSource, SequentialSource])
@pytest.mark.parametrize("of", ["manifest", "generation"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_misbehaves_is_an_error(kind, of, fault, folder, server, monkeypatch):
    """Before the source is opened, and when it is open."""
    opened = kind(server, Task.GENERATION)
    assert contents(kind(server, Task.GENERATION)) == contents(ShardSource(folder, Task.GENERATION))
    monkeypatch.setattr(FaultyServer, "fault", fault)
    monkeypatch.setattr(FaultyServer, "of", of)
    with pytest.raises(ShardError, match=FAULTS[fault]):
        contents(opened if of == "generation" else kind(server, Task.GENERATION))


def test_a_shard_that_changes_while_it_is_read_is_an_error(folder, server):
    opened = ShardSource(server, Task.GENERATION)
    assert isinstance(opened[0], Sample)
    tar = folder / opened.entries[0].file
    tar.write_bytes(tar.read_bytes()[512:] + bytes(512))
    with pytest.raises(ShardError, match="no tar header|samples, the manifest says|changes while"):
        opened.read([1])


def test_a_server_without_parts_of_files_is_read_from_the_start_only(folder, server, monkeypatch):
    monkeypatch.setattr(FaultyServer, "fault", "sends no parts")
    assert contents(SequentialSource(server, Task.GENERATION)) == contents(ShardSource(folder, Task.GENERATION))
    with pytest.raises(ShardError, match="sends no parts of files: set reader: stream"):
        ShardSource(server, Task.GENERATION).read([1])


def test_a_large_file_is_fetched_in_pieces(folder, server, monkeypatch):
    monkeypatch.setattr(storage, "_PIECE_BYTES", 100)
    expected = (folder / "manifest.json").read_bytes()
    assert len(expected) > 300
    assert open_storage(server).contents("manifest.json", len(expected)) == expected
    with pytest.raises(ShardError, match=f"{len(expected)} bytes, more than {len(expected) - 1}"):
        open_storage(server).contents("manifest.json", len(expected) - 1)
