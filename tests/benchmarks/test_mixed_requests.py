"""The comparison of an engine with one request after the other, on a tiny model."""

from benchmarks.mixed_requests import compare, mixed_requests, with_tokenizers
from tests.tiny import tiny_model


def test_half_of_the_requests_are_drawings_and_all_have_other_lengths():
    requests = mixed_requests(32, image_px=16)
    assert sum(request.image is None for request in requests) == 16
    assert len({request.answer.max_tokens for request in requests}) > 8
    assert len({len(request.text) for request in requests}) > 8


def test_both_ways_are_timed():
    found = compare(with_tokenizers(tiny_model()), 2, repeats=1)
    assert found["one_after_the_other_s"] > 0 and found["engine_s"] > 0 and found["throughput_ratio"] > 0
    assert found["first_part_ms"].keys() == {"alone", "at_once", "over_time"}
    assert all(ratio["most"] >= ratio["median"] > 0 for ratio in found["first_part_ratio"].values())
