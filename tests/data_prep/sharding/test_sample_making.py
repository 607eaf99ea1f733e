"""Samples of each task that are made from a record."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.inputs.record import Record
from data_prep.sharding.sample_making import SampleMaker, SamplesConfig
from tests.toy_input import tiny_png
from ufork.data.shards.sample import Sample
from ufork.errors import ConfigError, SampleError
from ufork.vocabulary import Task


def make(record: Record, image: bytes | None = None, **config) -> dict[Task, Sample]:
    maker = SampleMaker(
        SamplesConfig.from_mapping(config, origin="test"), source="pets", split="train", licence="CC-BY-4.0"
    )
    return {sample.task: sample for sample in maker.samples(record, image)}


def record(**fields) -> Record:
    return Record(**{"id": "7", "image": ("a",), **fields})


def test_a_caption_is_a_prompt_and_answers_a_question():
    samples = make(record(caption="a dog", class_name="dog"), tiny_png(), caption_questions=["What?"])
    assert samples[Task.GENERATION].prompt == "a dog" and samples[Task.GENERATION].turns == ()
    assert samples[Task.UNDERSTANDING].turns == (("What?", "a dog"),) and samples[Task.UNDERSTANDING].prompt == ""
    for task, sample in samples.items():
        assert sample.id == f"pets-train-{task}-7" and sample.truth == {"class_name": "dog"}
        assert (sample.image, sample.image_format, sample.source) == (tiny_png(), "png", "pets")


def test_a_class_name_fills_the_template_and_answers_its_question():
    samples = make(
        record(class_name="{great} {0}"), tiny_png(), prompt_templates=["a {class_name}!"], class_questions=["Kind?"]
    )
    assert samples[Task.GENERATION].prompt == "a {great} {0}!"
    assert samples[Task.UNDERSTANDING].turns == (("Kind?", "{great} {0}"),)


def test_turns_take_precedence_over_a_caption_and_need_no_image():
    turns = (("who?", "me"), ("why?", "so"))
    assert make(record(caption="a dog", turns=turns), tiny_png())[Task.UNDERSTANDING].turns == turns
    (sample,) = make(Record(id="7", turns=turns)).values()
    assert sample.task == Task.UNDERSTANDING and sample.is_text_only and sample.to_members()


def test_the_licence_of_the_record_takes_precedence():
    assert make(record(caption="a", licence="CC0-1.0"), tiny_png())[Task.GENERATION].licence == "CC0-1.0"
    assert make(record(caption="a"), tiny_png())[Task.GENERATION].licence == "CC-BY-4.0"


def test_only_the_configured_tasks_are_made():
    assert make(record(caption="a"), tiny_png(), tasks=["generation"]).keys() == {Task.GENERATION}


@pytest.mark.parametrize("poor", [record(), Record(id="7", caption="a dog"), Record(id="7", class_name="dog")])
def test_a_record_with_too_little_gives_no_sample(poor):
    assert make(poor, tiny_png() if poor.image else None) == {}


@given(st.text(min_size=1, max_size=5))
def test_the_wording_depends_on_the_id_alone(name):
    one, two = (make(record(id=name, class_name="dog", caption=""), image) for image in (tiny_png(), tiny_png() + b"x"))
    assert one[Task.GENERATION].prompt == two[Task.GENERATION].prompt


def test_all_wordings_occur():
    prompts = {make(record(id=str(n), class_name="dog"), tiny_png())[Task.GENERATION].prompt for n in range(50)}
    assert prompts == {"dog", "a photo of dog", "a picture of dog"}


def test_codes_are_accepted_in_place_of_an_image():
    codes = np.arange(12, dtype=np.uint16).reshape(2, 3, 2)
    file = Sample(id="a", task=Task.GENERATION, source="a", licence="", codes=codes).to_members()["codes.npy"]
    sample = make(record(caption="a"), file)[Task.GENERATION]
    assert np.array_equal(sample.codes, codes) and sample.image is None


@pytest.mark.parametrize(
    ("start", "image_format"), [(b"\xff\xd8\xff\xe0", "jpg"), (b"RIFF0000WEBPVP8", "webp"), (tiny_png()[:8], "png")]
)
def test_the_format_is_recognised_by_the_first_bytes(start, image_format):
    assert make(record(caption="a"), start)[Task.GENERATION].image_format == image_format


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"RIFF0000WAVE", b"\x93NUMPY\x01\x00cut"])
def test_other_files_are_refused(data):
    with pytest.raises(SampleError, match="7"):
        make(record(caption="a"), data)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("tasks", [], "at least one"),
        ("class_questions", ["a", "a"], "no value twice"),
        ("prompt_templates", ["a photo"], "class_name"),
        ("prompt_templates", ["{class_name.__class__}"], "class_name"),
        ("prompt_templates", ["{class_name:>1000000000}"], "class_name"),
        ("prompt_templates", ["{class_name!r}"], "class_name"),
        ("prompt_templates", ["{class_name} {other}"], "class_name"),
    ],
)
def test_invalid_wordings_are_refused(key, value, fault):
    with pytest.raises(ConfigError, match=fault):
        SamplesConfig.from_mapping({key: value}, origin="test")
