"""Conversations of LLaVA and ShareGPT: how messages, images and ids are read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.inputs.config import ConversationsConfig, open_input
from data_prep.inputs.dialogue import read_dialogue
from data_prep.inputs.record import Dropped, Record
from data_prep.inputs.skipped_input import SkippedInput
from ufork.errors import InputError, SampleError


def entry(*texts, **more):
    messages = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    return {"conversations": messages, **more}


def read(path, *entries, **settings):
    path.write_text(json.dumps(entries))
    return list(open_input(ConversationsConfig(path=path, images=path.parent, **settings)).records())


def test_an_entry_in_the_format_of_llava(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/1.jpg").write_bytes(b"the image")
    talk = entry("<image>\nWhat is it?", "A cat.", "Where?", "There.", id="000", image="coco/1.jpg")
    path = tmp_path / "llava.json"
    (record,) = read(path, talk)
    assert record == Record(
        id="llava.json:0:000", image=("coco/1.jpg",), turns=(("What is it?", "A cat."), ("Where?", "There."))
    )
    assert open_input(ConversationsConfig(path=path, images=tmp_path)).image(record) == b"the image"


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "What <image> is it?"])
def test_image_markers_are_removed_anywhere(tmp_path, question):
    (record,) = read(tmp_path / "a.json", entry(question, "A cat.", image="1.jpg"))
    assert record.turns == (("What is it?", "A cat."),)


def test_messages_with_roles_and_content_parts(tmp_path):
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    named = [{"type": "image", "image": "b.jpg"}, {"type": "text", "text": "And it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    records = read(
        tmp_path / "a.json",
        {"messages": [{"role": "user", "content": parts}, answer], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": named}, answer]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, answer]},
    )
    assert [(record.image, record.turns) for record in records] == [
        (("a.jpg",), (("What is it?", "A cat."),)),
        (("b.jpg",), (("And it?", "A cat."),)),
        (None, (("Be brief.\n\nHi", "A cat."),)),
    ]


A, IMAGE, SYSTEM = {"type": "text", "text": "a?"}, {"type": "image"}, {"role": "system", "content": "x"}
B = {"role": "assistant", "content": "b"}
MIDDLE = "conversation without questions, or with a system prompt in its middle"


def asked(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry("<image> <image> a?", "b", image=["1.jpg", "2.jpg"]), "more than one image"),
        (entry("a?", "b", image=["1.jpg", "2.jpg"]), "more than one image"),
        (entry("<image><image> a?", "b", image="1.jpg"), "more than one image"),
        (entry("<image> a?", "b"), "image marker without an image"),
        (entry("a?", "b", video="1.mp4"), "video"),
        (entry("a?"), "questions and answers that do not alternate"),
        (entry("a?", "b", "c?"), "questions and answers that do not alternate"),
        (entry(), MIDDLE),
        (entry("<image>", "b", image="1.jpg"), "empty question"),
        (entry("a?", " "), "empty answer"),
        (entry("a?", "b\0"), "answer that contains NUL"),
        (entry("a?", "\ud800"), "answer that is not valid UTF-8"),
        (entry("a?", "b" * 1001), "conversation longer than input.max_text_chars"),
        (entry("a?", None), "message that is neither text nor a list of parts"),
        (entry("a?", [{"type": "audio"}]), "message with other parts than text and images"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "message of an unknown role"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "message of an unknown role"),
        ({"messages": [asked(IMAGE, A), B]}, "image marker without an image"),
        ({"messages": [asked(IMAGE, IMAGE, A), B], "images": ["1.jpg"]}, "more than one image"),
        ({"messages": [SYSTEM, SYSTEM, asked(A), B]}, MIDDLE),
        ({"messages": [asked(A), SYSTEM, B]}, MIDDLE),
        ({"conversations": [3]}, "message that is not an object"),
        ({"conversations": [{"from": "human"}]}, "message without role and text"),
        ({"conversations": "hello"}, "conversation that is not a list"),
        ({"text": "a"}, "no conversations or messages"),
        (entry("a?", "b", image="/etc/passwd"), "image path that leaves the collection"),
        (entry("a?", "b", image="a/../../b.jpg"), "image path that leaves the collection"),
        (entry("a?", "b", image="a\0.jpg"), "image path that is not text"),
        (entry("a?", "b", image={"path": 1}), "image path that is not text"),
        (3, "entry that is not an object"),
    ],
)  # fmt: skip
def test_unusable_entries_are_dropped_with_the_reason(tmp_path, bad, reason):
    good = entry("a?", "b")
    records = read(tmp_path / "a.json", good, bad, good, max_text_chars=1000)
    assert records[1] == Dropped("a.json:1", reason)
    assert [record.id for record in records] == ["a.json:0", "a.json:1", "a.json:2"]


SCALARS = (
    st.none() | st.integers() | st.text() | st.sampled_from(["human", "gpt", "system", "text", "image", "<image>"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text", "image"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(messages=VALUES)
def test_any_value_becomes_turns_or_a_reason(messages):
    try:
        turns = read_dialogue(messages, max_chars=100).turns
    except SkippedInput as skip:
        assert skip.reason
    else:
        assert turns and all(question.strip() and answer.strip() for question, answer in turns)


def test_files_are_read_in_order_and_repeated_ids_are_made_unique(tmp_path):
    (tmp_path / "b").mkdir()
    read(tmp_path / "b/x.json", entry("a?", "b", id="same"), entry("a?", "c", id="same"))
    (tmp_path / "a.jsonl").write_text(json.dumps(entry("a?", "d", id=7)) + "\n")
    reader = open_input(ConversationsConfig(path=tmp_path))
    ids = [record.id for record in reader.records()]
    assert ids == ["a.jsonl:0:7", "b/x.json:0:same", "b/x.json:1:same"]
    assert ids == [record.id for record in reader.records()]
    assert [record.id for record in open_input(ConversationsConfig(path=tmp_path / "b/*.json")).records()] == [
        "x.json:0:same", "x.json:1:same"
    ]  # fmt: skip


def test_images_must_be_inside_their_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "images/link.jpg").symlink_to(tmp_path / "secret.jpg")
    path = tmp_path / "a.json"
    path.write_text(json.dumps([entry("a?", "b", image="link.jpg"), entry("a?", "b", image="gone.jpg")]))
    reader = open_input(ConversationsConfig(path=path, images=tmp_path / "images"))
    link, gone = reader.records()
    with pytest.raises(SampleError, match="link out of"):
        reader.image(link)
    with pytest.raises(SampleError, match="gone.jpg"):
        reader.image(gone)
    with pytest.raises(InputError, match="input.images"):
        list(open_input(ConversationsConfig(path=path)).records())


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        open_input(ConversationsConfig(path=tmp_path / "nowhere.json"))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="no such folder"):
        open_input(ConversationsConfig(path=tmp_path / "a.json", images=tmp_path / "images"))
