"""The report is saved and loaded, and shown as page and text, with any characters in names."""

import json
import shutil

import pytest

from data_prep.report.drop_report import as_text, load_report, save_report, write_report
from data_prep.report.selection import Selection
from data_prep.report.statistics import Statistics
from tests.data_prep.report.test_selection import selected
from tests.data_prep.report.test_statistics import counted, header, sample
from ufork.errors import ShardError, StorageError

DROPPED = selected([("a.jpg", "image below 64 px")] * 3 + [("b <script>.jpg", "no text")], kept=12)
SAMPLES = counted([(sample("a dog"), header(), "en")] * 12)


def test_a_saved_report_is_loaded_unchanged(tmp_path):
    save_report(tmp_path, DROPPED, SAMPLES)
    assert load_report(tmp_path) == (DROPPED, SAMPLES)


def test_the_page_names_dropped_records_and_is_self_contained(tmp_path):
    save_report(tmp_path, DROPPED, SAMPLES)
    html = write_report(tmp_path, "pets, train").read_text(encoding="utf-8")
    for words in ("image below 64 px", "18.8%", "75.0%", "12 of 16", "384 to 512", "CC0-1.0", "12 kB"):
        assert words in html
    assert "<script" not in html and "b &lt;script&gt;.jpg" in html
    assert "http" not in html


def test_the_text_ends_with_the_reasons_and_two_ids_of_each():
    lines = as_text(DROPPED, SAMPLES).splitlines()
    assert lines[-5:] == [
        "12 of 16 records kept, 75.0%; dropped:",
        "   3   18.8%  image below 64 px",
        "              a.jpg, a.jpg",
        "   1    6.2%  no text",
        "              b <script>.jpg",
    ]
    assert "Shorter side of the image, px: samples" in lines and "  384 to 512  12  100.0%" in lines


def test_names_with_any_characters_can_be_written_and_printed(tmp_path):
    dropped = selected([("half a letter \udc80, \x1b[31mred\n", "no text")])
    save_report(tmp_path, dropped, counted([(sample(licence="\ud800" * 10_000), header(), None)]))
    assert "half a letter \ufffd, \ufffd[31mred\ufffd" in as_text(*load_report(tmp_path))
    assert len(write_report(tmp_path, "pets, train").read_text(encoding="utf-8")) < 30_000


def test_an_empty_collection_has_a_report(tmp_path):
    save_report(tmp_path, Selection(), Statistics())
    assert "No record was dropped" in write_report(tmp_path, "pets, train").read_text(encoding="utf-8")
    assert as_text(Selection(), Statistics()).startswith("0 of 0 records kept")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot be read"),
        ("{", "not a report"),
        ("{}", "not a report"),
        ('{"version": 0}', "version 0, expected"),
    ],
)
def test_a_missing_or_foreign_report_is_named(tmp_path, contents, message):
    if contents is not None:
        (tmp_path / "report.json").write_text(contents)
    with pytest.raises(ShardError, match=rf"report\.json: {message}"):
        write_report(tmp_path, "pets, train")


def test_a_report_with_a_missing_table_is_an_error(tmp_path):
    save_report(tmp_path, DROPPED, SAMPLES)
    values = json.loads((tmp_path / "report.json").read_text())
    del values["samples"]["tables"]["aspect"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match="aspect"):
        load_report(tmp_path)


def test_a_missing_folder_is_a_storage_error(tmp_path):
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="cannot be written"):
        save_report(tmp_path, DROPPED, SAMPLES)
