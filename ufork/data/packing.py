"""Encoded samples laid end to end into packed sequences of a fixed number of tokens.

    encoded samples of one task, in the order of a lane -> PackedSequence

A packed sequence ends before the first sample that does not fit. Little is lost to padding while samples are much
shorter than the sequence, and the number of the next sample is all that a lane must remember.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ufork.data.prompts import EncodedSample
from ufork.vocabulary import IGNORED_LABEL, PackedSequence, Task


def pack_sequence(samples: Sequence[EncodedSample], *, seq_len: int, padding_id: int, seed: int = 0) -> PackedSequence:
    """Packs samples of one task, which must fit together into `seq_len` tokens; `seed` is that of the dropout."""
    lengths = [len(sample.token_ids_L) for sample in samples]
    num_real_tokens = sum(lengths)
    assert 0 < num_real_tokens <= seq_len and len({sample.task for sample in samples}) == 1
    token_ids_T = np.full(seq_len, padding_id, np.int64)
    labels_T = np.full(seq_len, IGNORED_LABEL, np.int64)
    token_ids_T[:num_real_tokens] = np.concatenate([sample.token_ids_L for sample in samples])
    labels_T[:num_real_tokens] = np.concatenate([sample.labels_L for sample in samples])
    if num_real_tokens < seq_len:
        lengths.append(seq_len - num_real_tokens)
    starts_S1 = np.concatenate(([0], np.cumsum(lengths)))
    with_image = [
        (start + sample.image_begin, sample.codes_IC)
        for start, sample in zip(starts_S1, samples, strict=False)  # the last start is the padding's
        if sample.image_begin is not None
    ]
    begins_M = np.array([begin for begin, _ in with_image], np.int64)
    codes_IC = np.concatenate([codes for _, codes in with_image] or [np.zeros((0, 1), np.int64)])
    image_positions = [begin + 1 + np.arange(len(codes)) for begin, codes in with_image]
    task = samples[0].task
    return PackedSequence(
        task=task,
        token_ids_T=torch.from_numpy(token_ids_T),
        positions_T=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        segment_starts_S1=torch.from_numpy(starts_S1.astype(np.int32)),
        longest_segment=max(lengths),
        labels_T=torch.from_numpy(labels_T),
        image_positions_I=torch.from_numpy(np.concatenate([*image_positions, np.zeros(0, np.int64)]).astype(np.int64)),
        image_begins_M=torch.from_numpy(begins_M),
        image_ends_M=torch.from_numpy(begins_M + np.array([len(codes) + 1 for _, codes in with_image], np.int64)),
        codes_IC=torch.from_numpy(codes_IC),
        num_targets=codes_IC.size if task is Task.GENERATION else int((labels_T != IGNORED_LABEL).sum()),
        num_real_tokens=num_real_tokens,
        sample_ids=tuple(sample.id for sample in samples),
        seed=seed,
    )
