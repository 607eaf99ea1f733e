"""Moving averages and restarts of the codebook, compared with a plain reference."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ufork.vision.codebook import CodebookAverage


def make(*, size: int, width: int, decay: float, seed: int = 0) -> CodebookAverage:
    generator = torch.Generator().manual_seed(seed)
    return CodebookAverage(torch.randn(size, width, generator=generator), decay=decay, generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    decay=st.floats(0, 0.99),
    size=st.integers(2, 12),
    num_vectors=st.integers(1, 40),
    num_steps=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_rows_are_the_decayed_means_of_their_vectors(decay, size, num_vectors, num_steps, seed):
    average = make(size=size, width=3, decay=decay, seed=seed)
    random = np.random.default_rng(seed)
    counts, sums = np.ones(size), average.codebook.double().numpy().copy()
    for _ in range(num_steps):
        vectors = random.normal(size=(num_vectors, 2, 3)).astype(np.float32)
        codes = random.integers(size, size=(num_vectors, 2))
        average.update(torch.from_numpy(vectors), torch.from_numpy(codes))
        for row in range(size):
            chosen = vectors[codes == row]
            counts[row] = decay * counts[row] + (1 - decay) * len(chosen)
            sums[row] = decay * sums[row] + (1 - decay) * chosen.sum(axis=0, dtype=np.float64)
    used = counts > 1e-5
    np.testing.assert_allclose(average.counts.numpy()[used], counts[used], rtol=1e-4)
    means = sums[used] / counts[used, None]
    np.testing.assert_allclose(average.codebook.numpy()[used], means, rtol=1e-3, atol=1e-4)


def test_an_unused_row_keeps_its_value():
    for decay in (0.0, 0.5):
        average = make(size=3, width=2, decay=decay)
        before = average.codebook[2].clone()
        for _ in range(200):  # its count decays below what fp32 can hold
            average.update(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
        torch.testing.assert_close(average.codebook[2], before)


def test_restart_replaces_only_dead_rows_by_given_vectors():
    average = make(size=4, width=2, decay=0.5)
    vectors = torch.arange(20.0).reshape(10, 2)
    for _ in range(10):
        average.update(vectors, torch.tensor([0, 1] * 5))
    before = average.codebook.clone()
    assert average.restart(vectors, below_uses=0.5) == 2
    assert torch.equal(average.codebook[:2], before[:2])
    assert all(any(torch.equal(row, vector) for vector in vectors) for row in average.codebook[2:])
    assert average.restart(vectors, below_uses=0.5) == 0, "a row just moved is not dead"


def test_a_restarted_row_is_averaged_from_its_new_value():
    average = make(size=2, width=1, decay=0.5)
    for _ in range(10):
        average.update(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    average.restart(torch.full((1, 1), 8.0), below_uses=0.5)
    average.update(torch.full((1, 1), 10.0), torch.tensor([1]))
    assert average.codebook[1].item() == 9.0  # one use at 8, one at 10, equal weights
