"""A packed sequence arrives as it was sent."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import DIMENSIONS, packed_sequence
from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
from ufork.vocabulary import Task

FORMAT = PackedSequenceFormat(seq_len=64, codes_per_position=DIMENSIONS.codes_per_position)


@given(
    task=st.sampled_from(Task),
    texts=st.lists(st.lists(st.integers(1, 299), min_size=1, max_size=8), min_size=1, max_size=4),
    images=st.booleans(),
    seed=st.integers(0, (1 << 62) - 1),
)
def test_decoding_returns_the_encoded_sequence(task, texts, images, seed):
    sequence = dataclasses.replace(
        packed_sequence(task, texts=texts, images=images or task is Task.GENERATION), seed=seed, sample_ids=()
    )
    encoded = FORMAT.encode(sequence)
    assert len(encoded) == FORMAT.size
    decoded = FORMAT.decode(encoded)
    for field in dataclasses.fields(sequence):
        sent, arrived = getattr(sequence, field.name), getattr(decoded, field.name)
        if isinstance(sent, torch.Tensor):
            assert sent.numel() == arrived.numel() and torch.equal(sent.flatten(), arrived.flatten()), field.name
            assert sent.dtype == arrived.dtype, field.name
        else:
            assert sent == arrived, field.name


@pytest.mark.parametrize("task", Task)
def test_a_sequence_full_of_one_token_samples_fits(task):
    texts = [[5]] * 64 if task is Task.UNDERSTANDING else [[5]] * (64 // 7)
    sequence = packed_sequence(task, texts=texts, images=task is Task.GENERATION)
    assert torch.equal(FORMAT.decode(FORMAT.encode(sequence)).token_ids_T, sequence.token_ids_T)
