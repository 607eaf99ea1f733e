"""Credentials in the URLs of data are used to open it and recorded nowhere; records stay readable otherwise."""

import logging
import time

import pytest

from pipelines.recipe import read_recipe
from pipelines.status.failure_record import record_of
from pipelines.terminal import PrintableFormatter
from ufork.data.shards.storage import open_storage
from ufork.errors import ConfigError, ShardError
from ufork.files import write_whole
from ufork.redaction import has_credentials, redacted, redacted_values

SECRETS = {
    "s3://KEY:SEC/RET+x@bucket/a": "s3://KEY:***@bucket/a",
    "https://user:pw@host:80/x?sig=abc&se=3#f": "https://user:***@host:80/x?sig=***&se=***#f",
    "HTTPS://TOKEN@host/x": "HTTPS://***@host/x",
    "filecache::ftp://u:p@ss@host/x": "filecache::ftp://u:***@host/x",
    "'https://u:12345@h/y', and <s3://k:s@b>": "'https://u:***@h/y', and <s3://k:***@b>",
    "http://h/?a=1&b=2": "http://h/?a=***&b=***",
}
PLAIN = [
    "s3://bucket/a@b",
    "https://host:8080/a@b",
    "abfs://container@account.dfs.core.windows.net/x",
    "user:password@host",
    "a/folder?x=1",
    "://",
]


@pytest.mark.parametrize(("text", "shown"), SECRETS.items())
def test_passwords_tokens_and_queries_are_hidden(text, shown):
    assert redacted(text) == shown and redacted(shown) == shown
    assert redacted_values({"a": [text, 1], "b": (None,)}) == {"a": [shown, 1], "b": [None]}


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays(text):
    assert redacted(text) == text and not has_credentials(text)


@pytest.mark.parametrize("text", ["://a:" * 15_000, "https://" * 15_000, "://" + "a" * 100_000])
def test_long_text_takes_little_time(text):
    began = time.process_time()
    redacted(text)
    assert not has_credentials(text) and time.process_time() - began < 3


URL = "memory://user:hunter2@host/shards"
OVERRIDES = [
    f"data.generation=[{{folder: '{URL}'}}]",
    f"phases={{all: {{train: {{alignment: {{data: ['{URL}']}}}}}}}}",
]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run: {{name: r, folder: {tmp_path}}}\n")
    return read_recipe(path, OVERRIDES)


def test_records_of_a_recipe_have_no_credentials_and_what_is_read_back_has(recipe, tmp_path):
    assert recipe.data.generation[0].folder == URL
    recipe.run_folder.record(recipe.model_dump(mode="json"), ("data", "phases"))
    recorded = recipe.run_folder.config.read_text()
    assert "hunter2" not in recorded and recorded.count("memory://user:***@host/shards") == 3
    assert "hunter2" not in recipe.model_dump_json()
    again = tmp_path / "again.yaml"
    write_whole(again, recipe.to_yaml())
    assert read_recipe(again) == recipe
    assert again.stat().st_mode & 0o077 == 0, "for its owner's eyes only"


def test_messages_and_failure_files_have_no_credentials(caplog):
    with pytest.raises(ShardError) as missing:
        open_storage(URL).contents("manifest.json", max_bytes=1000)
    with pytest.raises(ConfigError) as unknown:
        open_storage("nothing" + URL)
    record = record_of(ValueError(f"cannot open {URL}"), exit_code=1, rank=0).model_dump_json()
    line = PrintableFormatter("%(message)s").format(logging.makeLogRecord({"msg": f"reads {URL}"}))
    for text in (str(missing.value), str(unknown.value), record, line):
        assert "hunter2" not in text and "user:***@host" in text


def test_faulty_values_are_shown_without_credentials(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run: {{name: r}}\ndata: {{generation: [{{url: '{URL}'}}]}}\n")
    with pytest.raises(ConfigError, match="user:\\*\\*\\*@host") as refused:
        read_recipe(path)
    assert "hunter2" not in str(refused.value)
