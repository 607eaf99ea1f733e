"""Datasets saved to disk: every kind of column, images by row, and folders that are no datasets."""

import json
import socket

import numpy as np
import pytest
from PIL import Image as PillowImage

from data_prep.inputs.config import HuggingFaceConfig, open_input
from data_prep.inputs.record import Dropped, Record
from ufork.errors import InputError, SampleError

datasets = pytest.importorskip("datasets")
IMAGE = datasets.Image()


def save(folder, columns, **features):
    dataset = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        dataset = dataset.cast_column(name, feature)
    dataset.save_to_disk(str(folder))
    return dataset


def read(path, **settings):
    reader = open_input(HuggingFaceConfig(path=path, **settings))
    return reader, list(reader.records())


def encoded(*data):
    return [{"bytes": image, "path": None} if image is not None else None for image in data]


def test_captions_classes_licences_and_ids(tmp_path, read_in_another_process):
    columns = {
        "image": encoded(b"1", b"2"), "text": ["a cat", "a dog"], "label": [1, 0], "terms": ["CC0", None], "key": [7, 7]
    }  # fmt: skip
    save(tmp_path, columns, image=IMAGE, label=datasets.ClassLabel(names=["dog, Canis", "great_cat"]))
    settings = {"caption_column": "text", "label_column": "label", "licence_column": "terms", "id_column": "key"}
    reader, records = read(tmp_path, **settings)
    assert records == [
        Record(id="row:0:7", image=(0,), caption="a cat", class_name="great cat", licence="CC0"),
        Record(id="row:1:7", image=(1,), caption="a dog", class_name="dog"),
    ]
    assert [reader.image(record) for record in reversed(records)] == [b"2", b"1"]
    assert read_in_another_process(HuggingFaceConfig(path=tmp_path, **settings)) == str(
        [(record, reader.image(record)) for record in records]
    )


def test_images_are_read_without_decoding(tmp_path):
    PillowImage.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "black.png")
    save(tmp_path / "saved", {"image": [str(tmp_path / "black.png")], "text": ["black"]}, image=IMAGE)
    reader, (record,) = read(tmp_path / "saved", caption_column="text")
    assert reader.image(record) == (tmp_path / "black.png").read_bytes()


def test_conversations_with_one_image_none_and_several(tmp_path):
    def talk(text):
        return [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}]

    columns = {
        "images": [encoded(b"1"), [], encoded(b"2", b"3"), []],
        "talk": [talk("<image>\nWhat?"), talk("What?"), talk("What?"), talk("<image>\nWhat?")],
    }
    save(tmp_path, columns, images=datasets.List(IMAGE))
    reader, records = read(tmp_path, image_column="images", conversations_column="talk")
    turns = (("What?", "A cat."),)
    assert records == [
        Record(id="row:0", image=(0,), turns=turns),
        Record(id="row:1", turns=turns),
        Dropped("row:2", "more than one image"),
        Dropped("row:3", "image marker without an image"),
    ]
    assert reader.image(records[0]) == b"1"


def test_text_without_images_needs_no_image_column(tmp_path):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    save(tmp_path, {"messages": [messages]})
    _, records = read(tmp_path, image_column=None, conversations_column="messages")
    assert records == [Record(id="row:0", turns=(("What?", "That."),))]


TURN = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]


@pytest.mark.parametrize(
    "talk",
    [
        json.dumps(TURN),
        {"from": ["human", "gpt"], "value": ["<image>\nWhat?", "That."]},
        [{"user": "What?", "assistant": "That.", "source": "x"}],
        [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
        ],
    ],
    ids=["JSON text", "lists", "Cauldron", "parts"],
)
@pytest.mark.parametrize("images", [datasets.List(IMAGE), datasets.LargeList(IMAGE)], ids=["list", "large list"])
def test_conversations_in_other_forms(tmp_path, talk, images):
    """F4, F11."""
    save(tmp_path, {"images": [encoded(b"1")], "talk": [talk], "system": ["Be brief."]}, images=images)
    reader, (record,) = read(tmp_path, image_column="images", conversations_column="talk")
    assert record == Record(id="row:0", image=(0,), turns=(("Be brief.\n\nWhat?", "That."),))
    assert reader.image(record) == b"1"


def test_numbers_of_classes_are_named_by_a_file_or_used_as_they_are(tmp_path, caplog):
    """F4."""
    save(tmp_path / "saved", {"image": encoded(b"1", b"2", b"3"), "label": [1, 0, 7]}, image=IMAGE)
    _, records = read(tmp_path / "saved", label_column="label")
    assert [record.class_name for record in records] == ["1", "0", "7"]
    assert "name them by input.class_names" in caplog.text
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    caplog.clear()
    _, records = read(tmp_path / "saved", label_column="label", class_names=tmp_path / "names.txt")
    assert [getattr(record, "class_name", None) for record in records] == ["cat", "dog", None]
    assert records[2] == Dropped("row:2", "class number without a name in class_names")
    assert not caplog.text


def test_rows_that_cannot_be_used_are_dropped(tmp_path):
    columns = {"image": encoded(b"1", None, b"3", b"4"), "text": ["a", "b", "", None], "label": [0, 0, 0, 0]}
    save(tmp_path, columns, image=IMAGE)
    _, records = read(tmp_path, caption_column="text")
    assert [getattr(record, "reason", "") for record in records] == ["", "no image", "empty caption", "no caption"]


def test_images_that_are_too_large_or_outside_the_folder_are_refused(tmp_path):
    images = [{"bytes": bytes(2_000_000), "path": None}, {"bytes": None, "path": "/etc/passwd"}]
    datasets.Dataset.from_dict({"image": images, "text": ["a", "b"]}).save_to_disk(str(tmp_path))
    reader, records = read(tmp_path, caption_column="text", max_image_mb=1)
    for record, reason in zip(records, ("max_image_mb", "leaves the collection"), strict=True):
        with pytest.raises(SampleError, match=reason):
            reader.image(record)


def test_one_of_several_splits_is_selected(tmp_path):
    dataset = datasets.Dataset.from_dict({"image": encoded(b"1"), "text": ["a"]}).cast_column("image", IMAGE)
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path))
    with pytest.raises(InputError, match=r"input\.split"):
        read(tmp_path, caption_column="text")
    assert len(read(tmp_path, caption_column="text", split="test")[1]) == 1
    with pytest.raises(InputError, match="do not set it"):
        read(tmp_path / "train", caption_column="text", split="test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "caption_column"),
        ({"caption_column": "txt"}, "'txt'"),
        ({"caption_column": "text", "image_column": "text"}, "of type"),
    ],
)
def test_unsuitable_columns_are_named(tmp_path, settings, message):
    save(tmp_path, {"image": encoded(b"1"), "text": ["a"]}, image=IMAGE)
    with pytest.raises(InputError, match=message):
        read(tmp_path, **settings)


def test_no_script_is_run_and_no_network_accessed(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was accessed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "dataset_infos.json").write_text("{}")
    with pytest.raises(InputError, match="save_to_disk"):
        read(folder, caption_column="text")
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "squad", caption_column="text")
    assert not (tmp_path / "ran").exists()


def damaged(folder, values, **settings):
    """Reads the dataset after moving the end of the third value of the column `values` far outside of the file."""
    (arrow,) = folder.glob("*.arrow")
    ends = np.cumsum([len(value) for value in values]).astype("<i4")
    wrong = np.where(np.arange(len(values)) == 2, 2**30, ends).astype("<i4")
    contents = arrow.read_bytes()
    assert contents.count(ends.tobytes()) == 1
    arrow.unlink()
    arrow.write_bytes(contents.replace(ends.tobytes(), wrong.tobytes()))
    return read(folder, **settings)


def test_only_the_rows_with_damaged_lengths_are_skipped(tmp_path):
    texts = [f"caption number {number}" for number in range(5)]
    save(tmp_path, {"image": encoded(*[b"x"] * 5), "text": texts}, image=IMAGE)
    reader, records = damaged(tmp_path, texts, caption_column="text")
    reasons = [getattr(record, "reason", "") for record in records]
    assert reasons == ["", "", "row that is damaged", "row that is damaged", ""]
    assert reader.image(records[4]) == b"x"


def test_an_image_whose_length_is_damaged_is_refused(tmp_path):
    data = [bytes(number + 1) for number in range(5)]
    save(tmp_path, {"image": encoded(*data), "text": ["a"] * 5}, image=IMAGE)
    reader, records = damaged(tmp_path, data, caption_column="text")
    assert [isinstance(record, Dropped) for record in records] == [False, False, True, True, False]
    with pytest.raises(SampleError, match="row 2: row that is damaged"):
        reader.image(Record(id="x", image=(2,)))
    assert reader.image(records[4]) == data[4]


def test_damaged_folders_are_refused(tmp_path):
    save(tmp_path, {"image": encoded(b"1"), "text": ["a"]}, image=IMAGE)
    state = json.loads((tmp_path / "state.json").read_text())
    arrow = tmp_path / state["_data_files"][0]["filename"]
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InputError, match="not readable as a saved dataset"):
        read(tmp_path, caption_column="text")


def test_captions_that_are_fields_and_lists_of_one_image(tmp_path):
    """F4: objects as captions; W: images in a large list."""
    columns = {"images": [encoded(b"1"), encoded(b"2", b"3")], "text": [{"en": "a cat"}, {"en": "two"}]}
    save(tmp_path, columns, images=datasets.LargeList(IMAGE))
    reader, records = read(tmp_path, image_column="images", caption_column="text.en")
    assert (records[0].caption, reader.image(records[0]), records[1].reason) == ("a cat", b"1", "more than one image")
    with pytest.raises(InputError, match="has no column 'texts'"):
        read(tmp_path, image_column="images", caption_column="texts.en")
    assert "reads its field en" in read(tmp_path, image_column="images", caption_column="text")[1][0].reason
