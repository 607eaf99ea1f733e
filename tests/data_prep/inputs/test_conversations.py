"""Conversations of LLaVA and ShareGPT: how messages, images and ids are read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.inputs.config import ConversationsConfig, open_input
from data_prep.inputs.dialogue import read_dialogue
from data_prep.inputs.readers.json_stream import MAX_ENTRY_BYTES
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
        (entry("a?", "b", video="1.mp4"), "video or audio"),
        (entry("a?", "b", audios=["1.wav"]), "video or audio"),
        (entry("a?"), "questions and answers that do not alternate"),
        (entry("a?", "b", "c?"), "questions and answers that do not alternate"),
        (entry(), MIDDLE),
        (entry("<image>", "b", image="1.jpg"), "empty question"),
        (entry("a?", " "), "empty answer"),
        (entry("a?", "b\0"), "answer that contains NUL"),
        (entry("a?", "\ud800"), "answer that is not valid UTF-8"),
        (entry("a?", "b" * 1001), "conversation longer than input.max_text_chars"),
        (entry("a?", None), "message without role and text"),
        (entry("a?", 3), "message that is neither text nor a list of parts"),
        (entry("a?", [{"type": "audio"}]), "message with other parts than text and images"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "message of a tool"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "message of an unknown role"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "message of an unknown role"),
        ({"messages": [asked(IMAGE, A), B]}, "image marker without an image"),
        ({"messages": [asked(IMAGE, IMAGE, A), B], "images": ["1.jpg"]}, "more than one image"),
        ({"messages": [SYSTEM, asked(A), SYSTEM, B]}, MIDDLE),
        ({"messages": [asked(A), SYSTEM, B]}, MIDDLE),
        ({"conversations": [3]}, "message that is not an object"),
        ({"conversations": [{"from": "human"}]}, "message without role and text"),
        ({"conversations": "hello"}, "conversation that is a text, but not JSON"),
        ({"conversations": "[" * 100_000}, "conversation that is a text, but not JSON"),
        ({"conversations": {"from": ["human", "gpt"], "value": ["a?"]}}, "conversation of lists that differ in length"),
        ({"conversations": [{"user": "a?"}]}, "message without role and text"),
        (entry("a?", "b", system=["c"]), "system that is not text"),
        (entry("Draw it.", "<image>", image="1.jpg"), "image in an answer"),
        (entry("<video>\na?", "b", image="1.jpg"), "video or audio marker"),
        (entry("a?<|audio_1|>", "b"), "video or audio marker"),
        (entry("a?" * 600_000, "b"), "conversation longer than input.max_text_chars"),
        (entry(*"ab" * 600), "conversation longer than input.max_text_chars"),
        (entry("a?", "b", image="https://host/1.jpg"), "image is a URL"),
        (entry("a?", "b", image="data:image/png;base64,AAAA"), "image inside the JSON; write it to a file"),
        (entry("a?", "b", image="A" * 5000), "image inside the JSON; write it to a file"),
        ({"text": "a"}, "no conversations or messages"),
        (entry("a?", "b", image="/etc/passwd"), "image path that leaves the collection"),
        (entry("a?", "b", image="a/../../b.jpg"), "image path that leaves the collection"),
        (entry("a?", "b", image="file:///etc/passwd"), "image path that leaves the collection"),
        (entry("a?", "b", image="..\\..\\b.jpg"), "image path that leaves the collection"),
        (entry("a?", "b", image="%2e%2e/b.jpg"), "image path that leaves the collection"),
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


TURNS = (("a?", "b"), ("c?", "d"))
PARTS = {"type": ["image", "text"], "text": [None, "a?"]}


@pytest.mark.parametrize(
    "talk",
    [
        {"conversations": json.dumps(entry("a?", "b", "c?", "d")["conversations"])},
        {"conversations": {"from": ["human", "gpt"] * 2, "value": ["a?", "b", "c?", "d"]}},
        {"texts": [{"user": "a?", "assistant": "b", "source": "x"}, {"assistant": "d", "user": "c?"}]},
        {"messages": [{"from": "User", "content": "a?", "value": None}, {"from": "chatgpt", "value": "b"}]
                     + [{"role": "human", "text": "c?"}, {"role": "model", "content": {"type": "text", "text": "d"}}]},
        {"messages": [{"role": "user", "content": PARTS}, B, asked("c?"), {"role": "assistant", "content": ["d"]}]},
    ],
    ids=["JSON text", "lists", "Cauldron", "mixed names", "parts as lists"],
)  # fmt: skip
def test_other_forms_of_messages(tmp_path, talk):
    """F4."""
    images = {"images": [{"bytes": None, "path": "1.jpg"}], "image_path": "/elsewhere/1.jpg"}
    (record,) = read(tmp_path / "a.json", talk | images)
    assert (record.image, record.turns) == (("1.jpg",), TURNS)


def test_a_system_prompt_beside_the_messages_is_one_of_them(tmp_path):
    """F11."""
    messages = {"messages": [SYSTEM, asked(A), B]}
    records = read(
        tmp_path / "a.json",
        entry("a?", "b", system=" Be brief. "),
        entry("a?", "b", system_prompt="Be brief.", system=""),
        messages | {"system": "x"},
        messages | {"system": "y"},
    )
    assert [record.turns[0][0] for record in records] == [
        "Be brief.\n\na?",
        "Be brief.\n\na?",
        "x\n\na?",
        "y\n\nx\n\na?",
    ]


def test_markers_count_in_questions_only(tmp_path):
    """F9."""
    answer = "Use <image> or <video>, <img>x</img>."
    records = read(tmp_path / "a.json", entry("<image>\na?", answer, image="1.jpg"), entry("a?", answer))
    assert [(record.image, record.turns) for record in records] == [
        (("1.jpg",), (("a?", answer),)),
        (None, (("a?", answer),)),
    ]


@pytest.mark.parametrize(
    "marker",
    [
        *("<image>", "<Image>", "<image></image>", "<ImageHere>", "<Img><ImageHere></Img>", "<image_1>", "<image 1>"),
        *("<im_start><image><im_end>", "<|image_1|>", "<|image|>", "[IMG][IMG][IMG_BREAK][IMG][IMG_END]"),
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>",
        *("<img><IMG_CONTEXT><IMG_CONTEXT></img>", "(<image>./</image>)", "Image-1: <image>", "<image_placeholder>"),
        *("<image:1>", "<img_1>", "<image>./</image>", "<im_start><im_patch><im_patch><im_end>", "<image_soft_token>"),
        *("<|image_start|><|image|><|patch|><|image_end|>", "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>"),
        *("<|media_start|>image<|media_content|><|media_pad|><|media_end|>", "<Image>1.jpg</Image>"),
        *("<start_of_image>", "<|begin_of_image|><|endoftext|><|end_of_image|>", "Picture 1: <img>1.jpg</img>"),
    ],
)
def test_image_markers_of_other_formats_are_understood(tmp_path, marker):
    """F10."""
    one, none, two = read(
        tmp_path / "a.json",
        entry(f"{marker}\na?", "b", image="1.jpg"),
        entry(f"a? {marker}", "b"),
        entry(f"{marker} {marker} a?", "b", image="1.jpg"),
    )
    assert (one.image, one.turns) == (("1.jpg",), (("a?", "b"),))
    if "1.jpg" in marker:
        assert (none.image, none.turns) == (("1.jpg",), (("a?", "b"),))
    else:
        assert none.reason == "image marker without an image"
    assert two.reason == "more than one image"


def test_a_conversation_as_text_of_megabytes_is_not_decoded():
    """L6."""
    with pytest.raises(SkippedInput, match="longer than input.max_text_chars"):
        read_dialogue("[]" + " " * MAX_ENTRY_BYTES, max_chars=100)


def test_a_text_full_of_blanks_or_halves_of_markers_takes_no_time():
    for text in (" " * 100_000, "<img>" + " " * 100_000, "<|begin_of_image|><|a|>" * 5_000, "Picture 1:" * 10_000):
        assert read_dialogue([{"user": f"a{text}a?", "assistant": "b"}], max_chars=200_000).num_images == 0


SCALARS = (
    st.none() | st.integers() | st.text() | st.sampled_from(["human", "gpt", "system", "text", "image", "<image>"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text", "image", "user", "assistant"]),
            inner,
            max_size=4,
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


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("50% off.jpg", "50% off.jpg"),
        ("50% off.jpg", "50%25%20off.jpg"),
        ("q?.jpg", "q?.jpg"),
        ("q?.jpg", "q%3F.jpg"),
        ("a\\b.jpg", "a\\b.jpg"),
        ("sub dir/x.jpg", "sub dir\\x.jpg"),
        ("sub dir/x.jpg", "file://sub%20dir/x.jpg"),
        ("d\u00e9.jpg", "de\u0301.jpg"),
        ("de\u0301.jpg", "d\u00e9.jpg"),
        ("X.JPG", "X.jpg"),
        ("X.jpg", "X.JPG"),
    ],
)
def test_paths_of_images_in_other_spellings(tmp_path, on_disk, written):
    file = tmp_path / "images" / on_disk
    file.parent.mkdir(parents=True)
    file.write_bytes(b"found")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(entry("a?", "b", image=written)))
    reader = open_input(ConversationsConfig(path=path, images=tmp_path / "images"))
    (record,) = reader.records()
    assert reader.image(record) == b"found"


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        open_input(ConversationsConfig(path=tmp_path / "nowhere.json"))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="no such folder"):
        open_input(ConversationsConfig(path=tmp_path / "a.json", images=tmp_path / "images"))
