"""Filters: what each one drops, the reasons counted, and that no file content raises."""

import builtins
import sys
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.filtering.filters import FilterConfig, FilterResult, Filters, text_of
from data_prep.inputs.record import Record
from tests.vision.test_image_header import SAVED, png_header, saved, webp_header
from ufork.errors import ConfigError

PNG = saved("png", 60, 20)
DECODING = Filters(FilterConfig(check_decode=True))


def record(caption: str = "a dog", **values) -> Record:
    return Record(id="one", image=("a.png",), caption=caption, **values)


def reason(config: dict, image: bytes | None = PNG, **values) -> str | None:
    return Filters(FilterConfig(**config)).check(record(**values), image).reason


@pytest.mark.parametrize(
    ("config", "dropped"),
    [
        ({}, None),
        ({"min_side_px": 20}, None),
        ({"min_side_px": 21}, "image below 21 px"),
        ({"max_side_px": 60}, None),
        ({"max_side_px": 59}, "image above 59 px"),
        ({"max_aspect": 3}, None),
        ({"max_aspect": 2.9}, "image longer than 2.9 times its short side"),
        ({"check_decode": True}, None),
        ({"min_text_chars": 5}, None),
        ({"min_text_chars": 6}, "text below 6 characters"),
        ({"max_text_chars": 5}, None),
        ({"max_text_chars": 4}, "text above 4 characters"),
    ],
)
def test_values_at_a_bound_are_kept_and_beyond_it_dropped(config, dropped):
    assert reason(config) == dropped


def test_the_result_carries_the_image_header():
    result = Filters(FilterConfig(min_side_px=100)).check(record(), PNG)
    assert (result.header.width_px, result.header.height_px, result.header.format) == (60, 20, "png")
    assert Filters(FilterConfig()).check(record(), None) == FilterResult(reason=None)


def test_text_is_caption_and_dialogue_turns_and_a_class_name_is_not_measured():
    talk = Record(id="talk", class_name="dog", caption="a dog", turns=(("what is it?", "a dog"), ("where?", "outside")))
    assert text_of(talk) == "dog\na dog\nwhat is it?\na dog\nwhere?\noutside"
    assert Filters(FilterConfig(max_text_chars=38)).check(talk, None).reason is None
    assert Filters(FilterConfig(max_text_chars=37)).check(talk, None).reason == "text above 37 characters"
    assert reason({}, caption="") == "no text"
    assert reason({"min_text_chars": 0}, caption="") is None
    assert reason({"min_text_chars": 50}, caption="", class_name="dog") is None


@pytest.mark.parametrize(
    ("caption", "dropped"),
    [
        ("people walking at the beach", None),
        ("Ein Hund sitzt auf der Wiese hinter dem Haus", None),
        ("Un chien est assis sur l'herbe devant la maison", "language is none of en, de"),
        ("一只狗在草地上", "language is none of en, de"),
        ("Собака сидит на траве перед домом", "language is none of en, de"),
        ("tennis match", None),  # too short to identify, as the next
        ("sofa", None),
    ],
)
def test_languages(caption, dropped):
    assert LANGUAGES.check(record(caption), PNG).reason == dropped


def test_the_language_is_reported_if_it_is_likely():
    assert LANGUAGES.check(record("people walking at the beach"), PNG).language == "en"
    assert LANGUAGES.check(record("sofa"), PNG).language is None


LANGUAGES = Filters(FilterConfig(languages=("en", "de")))


def test_an_unknown_language_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"\['english'\] are not known; expected some of .*, en, "):
        Filters(FilterConfig(languages=("english",)))


def test_py3langid_is_imported_only_if_languages_are_filtered(monkeypatch):
    real_import = builtins.__import__

    def without_package(name, *arguments, **values):
        if name.startswith("py3langid"):
            raise ImportError(name)
        return real_import(name, *arguments, **values)

    monkeypatch.setattr(builtins, "__import__", without_package)
    for name in [name for name in sys.modules if name.startswith("py3langid")]:
        monkeypatch.delitem(sys.modules, name)
    assert reason({}) is None
    with pytest.raises(ConfigError, match=r"pip install 'ufork\[prep\]'"):
        Filters(FilterConfig(languages=("en",)))


@pytest.mark.parametrize("kind", sorted(SAVED.keys() - {"png of several frames"}))  # only the first frame is decoded
def test_only_decoding_finds_damage_after_the_header(kind):
    damaged = saved(kind)[:-40]
    assert reason({}, damaged) is None
    assert reason({"check_decode": True}, saved(kind)) is None
    assert reason({"check_decode": True}, damaged) == "image cannot be decoded"


@settings(max_examples=100)
@given(st.binary(max_size=300))
@example(b"\x89PNG\r\n\x1a\n")
@example(b"RIFF\xff\xff\xff\xffWEBPVP8L/" + b"\xff" * 20)
def test_arbitrary_bytes_are_dropped_with_a_reason(data):
    assert DECODING.check(record(), data).reason


FILES = [saved(kind) for kind in SAVED]


@st.composite
def damaged_files(draw) -> bytes:
    """A real file, cut off or with some bytes changed, removed or inserted."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([40, 200, 100_000])))))
        data[position : position + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.sampled_from([None, len(data) // 2, len(data) - 5]))])


@settings(max_examples=300)
@given(damaged_files())
@pytest.mark.filterwarnings("ignore:.*APNG")
def test_damaged_files_never_raise(data):
    assert DECODING.check(record(), data).reason in {
        None,
        "image cannot be decoded",
        "image header is damaged",
        "image is none of JPEG, PNG, WEBP",
        "image of more than 67108864 pixels",
    }


def test_a_file_that_claims_a_huge_size_is_dropped_without_decoding():
    tracemalloc.start()
    started = time.perf_counter()
    for bomb in (png_header(100_000, 100_000), webp_header(2**24, 2**24)):
        assert DECODING.check(record(), bomb).reason == "image of more than 67108864 pixels"
    assert tracemalloc.get_traced_memory()[1] < 200_000 and time.perf_counter() - started < 1
    tracemalloc.stop()
