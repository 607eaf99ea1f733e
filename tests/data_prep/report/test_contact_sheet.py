"""The contact sheet shows samples of any source, including damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.demo.emoji import EmojiConfig
from data_prep.demo.prepare import PrepareConfig, prepare
from data_prep.report import contact_sheet
from data_prep.report.contact_sheet import NUM_SAMPLES, write_contact_sheet
from tests.vision.test_image_header import saved
from ufork.data.shards.sample import Sample
from ufork.data.shards.writer import ShardWriter, finish_source, start_source
from ufork.errors import ShardError, StorageError
from ufork.vocabulary import Task


def make_sample(number: int, task: Task = Task.GENERATION, **values) -> Sample:
    values = {"image": saved("png"), "image_format": "png", "prompt": f"number {number}", **values}
    return Sample(id=f"s-{number}", task=task, source="s", licence="CC0-1.0", **values)


def write_source(folder: Path, samples: list[Sample], shard_samples: int = 7) -> None:
    start_source(folder)
    entries = []
    for task in Task:
        with ShardWriter(folder, source="s", split="train", task=task, shard_samples=shard_samples) as writer:
            for sample in samples:
                if sample.task == task:
                    writer.write(sample)
        entries += writer.entries
    finish_source(folder, source="s", split="train", licence="CC0-1.0", attribution="", recipe="r", entries=entries,
                  skipped={}, details={})  # fmt: skip


def cells_of(folder: Path, monkeypatch) -> list:
    """Returns the cells that are drawn; checks that the sheet is a readable picture."""
    shown = []
    drawn = contact_sheet._drawn
    monkeypatch.setattr(contact_sheet, "_drawn", lambda cells, *texts: shown.extend(cells) or drawn(cells, *texts))
    write_contact_sheet(folder, folder / "sheets" / "sheet.png")
    with Image.open(folder / "sheets" / "sheet.png") as sheet:
        sheet.load()
    return shown


def text_of(cell) -> str:
    return " ".join(line for line, _ in cell.lines)


def test_samples_are_taken_evenly_over_all_shards(tmp_path, monkeypatch):
    write_source(tmp_path, [make_sample(number) for number in range(4 * NUM_SAMPLES)])
    numbers = [int(text_of(cell).split()[1]) for cell in cells_of(tmp_path, monkeypatch)]
    assert numbers == list(range(2, 4 * NUM_SAMPLES, 4))


def test_a_few_samples_are_all_shown_with_the_same_bytes_each_time(tmp_path, monkeypatch):
    talk = make_sample(5, Task.UNDERSTANDING, prompt="", turns=(("what is it?", "a thing"), ("which?", "this")))
    write_source(tmp_path, [make_sample(0), make_sample(1), talk])
    first, *others = cells_of(tmp_path, monkeypatch)
    before = (tmp_path / "sheets" / "sheet.png").read_bytes()
    assert (first.task, text_of(first), first.note) == (Task.UNDERSTANDING, "what is it? a thing", "1 of 2 turns")
    assert [text_of(cell) for cell in others] == ["number 0", "number 1"]
    write_contact_sheet(tmp_path, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == before


def test_damaged_samples_and_codes_have_a_notice(tmp_path, monkeypatch):
    codes = {"image": None, "image_format": None, "codes": np.zeros((8, 9, 4), np.uint16)}
    write_source(tmp_path, [make_sample(0, image=b"no image"), make_sample(1, **codes), make_sample(2)])
    tar = tmp_path / "generation-00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"prompt":"number 2"', b'"prompt":"number 2,'))
    undecodable, coded, unreadable = cells_of(tmp_path, monkeypatch)
    assert undecodable.notice == "cannot be decoded" and text_of(undecodable) == "number 0"
    assert coded.notice == "codes, no picture\n8 x 9 x 4" and text_of(coded) == "number 1"
    assert unreadable.notice == "cannot be read" and "JSON" in text_of(unreadable)
    assert undecodable.picture is coded.picture is unreadable.picture is None


def test_a_source_without_samples_has_an_empty_sheet(tmp_path, monkeypatch):
    write_source(tmp_path, [])
    assert cells_of(tmp_path, monkeypatch) == []


@settings(max_examples=100)
@given(st.text(st.characters(), max_size=600) | st.text("wide ", max_size=2000))
def test_any_text_fits_its_cell(text):
    shown = contact_sheet._lines(text, "black", 4)
    lines = [line for line, _ in shown]
    font = contact_sheet._font()
    contact_sheet._drawn([contact_sheet._Cell(task=Task.GENERATION, picture=None, notice="", lines=shown)], text, text)
    assert 1 <= len(lines) <= 4
    assert all(font.getlength(line) <= contact_sheet._THUMBNAIL_PX + font.getlength("…") for line in lines)


def test_real_emoji_fill_the_sheet(tmp_path, monkeypatch):
    few = EmojiConfig(num_train_per_task=40, num_heldout_per_task=0)
    prepare(PrepareConfig(scenes=None, emoji=few, num_workers=1), tmp_path, seed=0)
    cells = cells_of(tmp_path / "emoji" / "train", monkeypatch)
    assert len(cells) == NUM_SAMPLES and {cell.task for cell in cells} == set(Task)
    assert all(cell.picture is not None and np.ptp(cell.picture) > 50 and text_of(cell) for cell in cells)


def test_a_missing_source_and_an_unwritable_file_are_named(tmp_path):
    with pytest.raises(ShardError):
        write_contact_sheet(tmp_path, tmp_path / "sheet.png")
    write_source(tmp_path, [make_sample(0)])
    with pytest.raises(StorageError, match=r"manifest\.json"):
        write_contact_sheet(tmp_path, tmp_path / "manifest.json" / "sheet.png")
