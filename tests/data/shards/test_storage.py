"""Sources at a URL are read like those in a folder, and no URL runs a command."""

import os
import pickle
import resource
import uuid

import fsspec
import pytest

from tests.tiny import write_codes_source
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
