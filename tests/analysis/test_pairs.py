"""Pairs of sources: which samples become one, in which order, and what is said of the others."""

import pytest

from tests.infer.test_model import save_codec
from tests.tiny import write_codes_source
from ufork.analysis.pairs import read_pairs
from ufork.errors import ConfigError, ShardError
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    save_codec(folder)
    return ImageCodec.load(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "tiny"
    write_codes_source(folder, num_samples=30)
    return str(folder)


def test_texts_are_unique_and_the_seed_decides_the_order(codec, source, caplog):
    pairs, again, other = (read_pairs(codec, [source], num_pairs=12, seed=seed) for seed in (0, 0, 1))
    assert [pair.id for pair in pairs] == [pair.id for pair in again] != [pair.id for pair in other]
    assert len({pair.text for pair in pairs}) == len(pairs) == 12
    assert "its text is that of an earlier pair" in caplog.text


def test_prompts_make_pairs_and_answers_only_where_there_are_none(codec, source, tmp_path):
    assert {pair.id.split("-")[1] for pair in read_pairs(codec, [source], num_pairs=12, seed=0)} == {"generation"}
    answers = tmp_path / "answers"
    write_codes_source(answers, num_samples=30, tasks=(Task.UNDERSTANDING,))
    pairs = read_pairs(codec, [str(answers)], num_pairs=12, seed=0)
    assert {pair.id.split("-")[1] for pair in pairs} == {"understanding"} and all(pair.text for pair in pairs)


def test_too_few_pairs_are_an_error_that_says_how_many_there_are(codec, source):
    with pytest.raises(ConfigError, match=r"num_pairs=1000: .*tiny: only \d+ pairs"):
        read_pairs(codec, [source], num_pairs=1000, seed=0)


def test_a_missing_source_is_an_error(codec, tmp_path):
    with pytest.raises(ShardError, match="nowhere"):
        read_pairs(codec, [str(tmp_path / "nowhere")], num_pairs=5, seed=0)
