"""Samples in packed sequences: nothing is lost on the way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import encoded_sample
from ufork.data.packing import pack_sequence
from ufork.vocabulary import IGNORED_LABEL, Task

PADDING = 299
TEXTS = st.lists(
    st.tuples(st.lists(st.integers(1, 290), min_size=1, max_size=9), st.booleans()), min_size=1, max_size=5
)


def packed(task, texts, spare):
    samples = [
        encoded_sample(task, text, image=image or task is Task.GENERATION, seed=i, name=f"s{i}")
        for i, (text, image) in enumerate(texts)
    ]
    num_tokens = sum(len(sample.token_ids_L) for sample in samples)
    return samples, pack_sequence(samples, seq_len=num_tokens + spare, padding_id=PADDING)


@given(task=st.sampled_from(Task), texts=TEXTS, spare=st.integers(0, 5))
def test_every_token_label_code_and_image_position_survives(task, texts, spare):
    samples, sequence = packed(task, texts, spare)
    images = iter(zip(sequence.image_begins_M.tolist(), sequence.image_ends_M.tolist(), strict=True))
    codes = iter(zip(sequence.image_positions_I.tolist(), sequence.codes_IC.tolist(), strict=True))
    for start, sample in zip(sequence.segment_starts_S1.tolist(), samples, strict=False):
        segment = slice(start, start + len(sample.token_ids_L))
        assert np.array_equal(sequence.token_ids_T[segment], sample.token_ids_L)
        assert np.array_equal(sequence.labels_T[segment], sample.labels_L)
        if sample.image_begin is not None:
            begin, end = next(images)
            assert (begin, end) == (start + sample.image_begin, begin + len(sample.codes_IC) + 1)
            expected = list(zip(range(begin + 1, end), sample.codes_IC.tolist(), strict=True))
            assert [next(codes) for _ in expected] == expected
    assert not list(images) and not list(codes)
    assert sequence.sample_ids == tuple(sample.id for sample in samples)
    targets = np.concatenate([s.codes_IC if task is Task.GENERATION else s.labels_L for s in samples], axis=None)
    assert sequence.num_targets == (targets != IGNORED_LABEL).sum()


@given(task=st.sampled_from(Task), texts=TEXTS, spare=st.integers(0, 5))
def test_samples_and_padding_are_segments_that_count_from_zero(task, texts, spare):
    samples, sequence = packed(task, texts, spare)
    lengths = [len(sample.token_ids_L) for sample in samples] + [spare] * (spare > 0)
    assert sequence.segment_starts_S1.diff().tolist() == lengths
    assert (sequence.segment_starts_S1[0], sequence.segment_starts_S1[-1]) == (0, len(sequence.token_ids_T))
    assert sequence.longest_segment == max(lengths)
    assert sequence.positions_T.tolist() == [position for length in lengths for position in range(length)]
    num_real = len(sequence.token_ids_T) - spare
    assert sequence.num_real_tokens == num_real
    assert (sequence.token_ids_T[num_real:] == PADDING).all()
    assert (sequence.labels_T[num_real:] == IGNORED_LABEL).all()


@pytest.mark.parametrize("seq_len", [8, 16], ids=["too long", "two tasks"])
def test_samples_that_cannot_be_one_sequence_are_refused(seq_len):
    samples = [encoded_sample(Task.GENERATION, [1, 2, 3]), encoded_sample(Task.UNDERSTANDING, [1], image=False)]
    with pytest.raises(AssertionError):
        pack_sequence(samples[: 1 + (seq_len == 16)], seq_len=seq_len, padding_id=PADDING)
