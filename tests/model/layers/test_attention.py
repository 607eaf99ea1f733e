"""Both attention kernels against the formula, and the choice between them."""

import inspect
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import packed_sequence, tiny_config, tiny_model
from ufork.model.layers.attention import Segments, choose_attention_kernel, flash_attention, sdpa_attention
from ufork.model.layers.causal import MAX_EXPLICIT_LENGTH, causal_attention, explicit_attention
from ufork.vocabulary import Task

CUDA = torch.device("cuda")


def written_out(query, key, value, starts):
    """Attention by its formula, in fp32, with a mask over the whole packed sequence."""
    num_tokens, num_attention_heads, head_dim = query.shape
    repeats = num_attention_heads // key.shape[1]
    key, value = (x.float().repeat_interleave(repeats, dim=1) for x in (key, value))
    segment = torch.searchsorted(starts, torch.arange(num_tokens), right=True)
    seen = (segment[:, None] == segment) & torch.ones(num_tokens, num_tokens).tril().bool()
    scores = torch.einsum("qhw,khw->hqk", query.float(), key) * head_dim**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khw->qhw", weights, value).to(query.dtype)


def gradients_of(out, tensors):
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    return torch.autograd.grad(out, tensors, direction)


def inputs_of(lengths, num_key_value_heads, group, dtype=torch.float32):
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    generator = torch.Generator().manual_seed(sum(lengths))
    heads = (num_key_value_heads * group, num_key_value_heads, num_key_value_heads)
    tensors = [torch.randn(sum(lengths), n, 8, generator=generator).to(dtype).requires_grad_() for n in heads]
    return tensors, Segments(SimpleNamespace(segment_starts_S1=starts, longest_segment=max(lengths)))


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(lengths=LENGTHS, num_key_value_heads=st.integers(1, 3), group=st.integers(1, 3))
def test_sdpa_equals_the_formula(lengths, num_key_value_heads, group):
    tensors, segments = inputs_of(lengths, num_key_value_heads, group)
    found, expected = sdpa_attention(*tensors, segments), written_out(*tensors, segments.starts_S1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, reference in zip(*(gradients_of(out, tensors) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("longest", [MAX_EXPLICIT_LENGTH, MAX_EXPLICIT_LENGTH + 1])
@pytest.mark.parametrize(("num_key_value_heads", "group"), [(2, 1), (1, 3)])
def test_half_precision_on_a_cpu_equals_the_formula(longest, num_key_value_heads, group):
    """Compares on either side of the length up to which the explicit formula is used."""
    tensors, segments = inputs_of([7, longest, 1], num_key_value_heads, group, torch.bfloat16)
    found, expected = sdpa_attention(*tensors, segments), written_out(*tensors, segments.starts_S1)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    for ours, reference in zip(*(gradients_of(out, tensors) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0.03, atol=0.03)


@given(num_key_value_heads=st.integers(1, 3), group=st.integers(1, 3), length=st.integers(1, 9))
def test_explicit_attention_equals_torchs(num_key_value_heads, group, length):
    heads = (num_key_value_heads * group, num_key_value_heads, num_key_value_heads)
    tensors = [torch.randn(2, n, length, 8, dtype=torch.float64, requires_grad=True) for n in heads]
    found, expected = explicit_attention(*tensors), causal_attention(*tensors)
    torch.testing.assert_close(found, expected)
    for ours, reference in zip(*(gradients_of(out, tensors) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, reference)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """Checks the arguments as flash-attn 2 requires them, and computes the result by the formula."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    assert q.dim() == k.dim() == v.dim() == 3 and k.shape == v.shape
    assert q.shape[0] == k.shape[0] and q.shape[2] == k.shape[2] and q.shape[1] % k.shape[1] == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    for starts, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and starts.device == q.device
        assert (starts[0], starts[-1]) == (0, len(q)) and (starts.diff() > 0).all()
        assert isinstance(longest, int) and longest == starts.diff().max()
    assert causal and softmax_scale is None and dropout_p == 0.0
    return written_out(q, k, v, cu_seqlens_q)


@pytest.fixture
def flash_attn(monkeypatch):
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.parametrize(("num_key_value_heads", "group"), [(2, 1), (2, 2)])
def test_flash_attention_is_called_with_valid_arguments(flash_attn, num_key_value_heads, group):
    tensors, segments = inputs_of([3, 7, 1], num_key_value_heads, group, torch.bfloat16)
    found, expected = flash_attention(*tensors, segments), sdpa_attention(*tensors, segments)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("task", Task)
def test_a_whole_model_in_half_precision_calls_flash_attention_with_valid_arguments(flash_attn, task):
    """Queries, keys and segments as the decoder makes them, padding included."""
    model = tiny_model(tiny_config()).bfloat16()
    sequence = packed_sequence(task, texts=[[5, 6, 7], [8, 9]])
    expected = model(sequence)
    model.kernel = flash_attention
    torch.testing.assert_close(model(sequence), expected, rtol=0.01, atol=0.0)


def test_the_stand_in_has_the_signature_of_flash_attn():
    flash = pytest.importorskip("flash_attn")
    genuine = list(inspect.signature(flash.flash_attn_varlen_func).parameters)
    assert genuine[:10] == list(inspect.signature(flash_attn_varlen_func).parameters)


@pytest.mark.parametrize(
    ("device", "dtype", "package", "kernel", "said"),
    [
        (torch.device("cpu"), torch.bfloat16, True, sdpa_attention, "the device is cpu"),
        (CUDA, torch.float32, True, sdpa_attention, "half precision, not torch.float32"),
        (CUDA, torch.bfloat16, False, sdpa_attention, "pip install ufork[gpu]"),
        (CUDA, torch.bfloat16, True, flash_attention, "FlashAttention varlen kernel"),
        (CUDA, torch.float16, True, flash_attention, "FlashAttention varlen kernel"),
    ],
)
def test_the_kernel_is_chosen_once_and_logged(flash_attn, monkeypatch, caplog, device, dtype, package, kernel, said):
    if not package:
        monkeypatch.setitem(sys.modules, "flash_attn", None)  # importing it fails
    with caplog.at_level(logging.INFO):
        assert choose_attention_kernel(device, dtype) is kernel
    assert [said in record.message for record in caplog.records] == [True]
