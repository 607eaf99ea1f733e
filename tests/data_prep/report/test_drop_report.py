"""The report: what is saved comes back, the page and the text say it, and nothing that is named breaks them."""

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


def test_what_is_saved_comes_back(tmp_path):
    save_report(tmp_path, DROPPED, SAMPLES)
    assert load_report(tmp_path) == (DROPPED, SAMPLES)


def test_the_page_says_what_was_left_out_and_is_self_contained(tmp_path):
    save_report(tmp_path, DROPPED, SAMPLES)
    html = write_report(tmp_path, "pets, train").read_text(encoding="utf-8")
    for words in ("image below 64 px", "18.8%", "75.0%", "12 of 16", "384 to 512", "CC0-1.0", "12 kB"):
        assert words in html
    assert "<script" not in html and "b &lt;script&gt;.jpg" in html
    assert "http" not in html


def test_the_text_has_its_columns_in_line():
    lines = as_text(DROPPED, SAMPLES).splitlines()
    assert lines[:3] == [
        "12 of 16 records kept, 75.0%; left out:",
        "  image below 64 px  3  18.8%  a.jpg, a.jpg",
        "  no text            1   6.2%  b <script>.jpg",
    ]
    assert "Shorter side of the image, px: samples" in lines and "  384 to 512  12  100.0%" in lines


def test_names_of_any_letters_can_be_written_and_printed(tmp_path):
    dropped = selected([("half a letter \udc80, \x1b[31mred\n", "no text")])
    save_report(tmp_path, dropped, counted([(sample(licence="\ud800" * 10_000), header(), None)]))
    assert "half a letter \ufffd, \ufffd[31mred\ufffd" in as_text(*load_report(tmp_path))
    assert len(write_report(tmp_path, "pets, train").read_text(encoding="utf-8")) < 30_000


def test_an_empty_collection_is_no_trouble(tmp_path):
    save_report(tmp_path, Selection(), Statistics())
    assert "No record was skipped" in write_report(tmp_path, "pets, train").read_text(encoding="utf-8")
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


def test_a_report_that_lacks_a_part_is_named(tmp_path):
    save_report(tmp_path, DROPPED, SAMPLES)
    values = json.loads((tmp_path / "report.json").read_text())
    del values["samples"]["tables"]["aspect"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match="aspect"):
        load_report(tmp_path)


def test_a_folder_that_is_gone_is_named(tmp_path):
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="cannot be written"):
        save_report(tmp_path, DROPPED, SAMPLES)
