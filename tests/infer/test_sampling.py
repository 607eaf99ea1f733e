"""Sampling: what guidance, temperature, top-k and top-p leave to draw from, and that it is reproducible."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ufork.errors import ConfigError
from ufork.infer.config import DrawConfig
from ufork.infer.sampling import Sampling, guided, kept_probabilities, sample, uniform_numbers


def logits_of(num_sequences, num_codes, seed):
    return 3 * torch.randn(num_sequences, num_codes, generator=torch.Generator().manual_seed(seed))


def drawn(logits, seed=0, **changes):
    uniform = torch.rand(len(logits), generator=torch.Generator().manual_seed(seed))
    return sample(logits, sampling_of(changes), uniform)


def sampling_of(*changes):
    """One for each of `changes`."""
    everything = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return Sampling.of([DrawConfig(**everything | change) for change in changes], torch.device("cpu"))


@given(
    num_codes=st.integers(1, 12),
    top_k=st.integers(0, 15),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.2, 3.0),
    seed=st.integers(0, 99),
)
def test_a_drawn_code_is_among_the_k_likeliest_and_in_the_nucleus(num_codes, top_k, top_p, temperature, seed):
    logits = logits_of(20, num_codes, seed)
    codes = drawn(logits, seed, top_k=top_k, top_p=top_p, temperature=temperature)
    for row, code in zip(logits, codes.tolist(), strict=True):
        likelier = row > row[code]
        kept = row.topk(min(top_k or num_codes, num_codes))[0]
        assert likelier.sum() < len(kept)
        weights = (kept / temperature).softmax(-1)
        assert weights[: int(likelier.sum())].sum() < top_p + 1e-6


@pytest.mark.parametrize("top_p", [0.37, 0.83])
@pytest.mark.parametrize("top_k", [1, 7, 900])
def test_of_equal_logits_as_many_are_kept_as_the_release_keeps(top_k, top_p):
    """The release removes what is less likely than the k-th logit, then what comes after the sum has reached top-p."""
    logits = logits_of(20, 60, 0).round()
    limit = logits.topk(min(top_k, 60)).values[:, -1:]
    weights = logits.masked_fill(logits < limit, -torch.inf).softmax(-1).sort(dim=-1, descending=True).values
    weights[(weights.cumsum(-1) - weights) >= top_p] = 0.0
    found = kept_probabilities(logits, DrawConfig(top_k=top_k, top_p=top_p)).sort(dim=-1, descending=True).values
    assert (found > 0).equal(weights > 0)
    torch.testing.assert_close(found, weights / weights.sum(-1, keepdim=True))


def test_top_1_is_the_likeliest():
    logits = logits_of(50, 9, 0)
    assert drawn(logits, top_k=1).equal(logits.argmax(-1))


def test_the_code_that_crosses_top_p_is_kept_and_the_next_is_not():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(500, 3)
    assert set(drawn(logits, top_p=0.5).tolist()) == {0}
    assert set(drawn(logits, top_p=0.6).tolist()) == {0, 1}
    assert set(drawn(logits, top_p=0.9).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_with_their_probabilities(temperature):
    logits = logits_of(1, 5, 3)
    codes = drawn(logits.expand(20_000, 5), temperature=temperature)
    shares = codes.bincount(minlength=5) / 20_000
    torch.testing.assert_close(shares, (logits[0] / temperature).softmax(-1), atol=0.02, rtol=0.0)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 4.0])
def test_guidance_extrapolates_from_unconditional_to_conditional_logits(guidance):
    logits = logits_of(6, 4, 0)
    expected = (1 - guidance) * logits[3:] + guidance * logits[:3]
    torch.testing.assert_close(guided(logits, guidance, 3), expected)


def test_without_guidance_there_is_one_row_of_logits_per_prompt():
    logits = logits_of(3, 4, 0)
    assert guided(logits, 1.0, 3).equal(logits)


def test_temperature_0_is_greedy():
    logits = logits_of(50, 9, 0)
    assert drawn(logits, temperature=0.0, top_p=0.3).equal(logits.argmax(-1))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_rounding_never_draws_a_removed_code(uniform):
    logits = logits_of(1, 16_384, 0).expand(200, -1)
    code = int(sample(logits, sampling_of({"top_p": 0.5}), torch.full((200,), uniform))[0])
    likelier = logits[0] > logits[0][code]
    assert logits[0].softmax(-1)[likelier].sum() < 0.5 + 1e-5


OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-45, 0.3, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 1, 3, 900]),
        "top_p": st.sampled_from([0.1, 0.7, 1.0]),
    }
)


@given(options=st.lists(OPTIONS, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_row_draws_by_its_own_values_what_it_draws_alone(options, seed):
    logits = logits_of(len(options), 50, seed)
    logits[:, 25:] = logits[:, :25]  # ties, as in bf16
    uniform = torch.rand(len(options), generator=torch.Generator().manual_seed(seed))
    together = sample(logits, sampling_of(*options), uniform)
    alone = [sample(logits[i : i + 1], sampling_of(changes), uniform[i : i + 1]) for i, changes in enumerate(options)]
    assert together.equal(torch.cat(alone))


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_changes_no_other(fault):
    logits = logits_of(3, 9, 0)
    expected = drawn(logits)
    logits[1] = fault
    assert drawn(logits)[[0, 2]].equal(expected[[0, 2]]) and 0 <= drawn(logits)[1] < 9


def test_uniform_numbers_depend_only_on_the_seed_of_their_prompt():
    together = uniform_numbers([5, 6, 5], 4, 3)
    assert together.shape == (3, 4, 3) and 0 <= together.min() and together.max() < 1
    assert together[0].equal(together[2]) and not together[0].equal(together[1])
    assert together[1].equal(uniform_numbers([6], 4, 3)[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("guidance", float("inf")),
        ("guidance", -1),
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("top_p", 0),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("seed", 10**20),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        DrawConfig.from_mapping({key: value}, origin="options")


def test_the_kept_probabilities_are_those_that_codes_are_drawn_with():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.15, 0.05]]).log()
    config = DrawConfig(top_k=4, top_p=0.8)
    kept = kept_probabilities(logits, config)
    torch.testing.assert_close(kept, torch.tensor([[0.0, 0.4, 0.3, 0.15, 0.0]]) / 0.85)
    codes = drawn(logits.expand(20_000, 5), top_k=4, top_p=0.8)
    torch.testing.assert_close(codes.bincount(minlength=5) / 20_000, kept[0], atol=0.02, rtol=0.0)
