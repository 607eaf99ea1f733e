"""The attention kernels against the formula, and the choice between them."""

import importlib
import inspect
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import packed_sequence, tiny_config, tiny_model
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.layers.attention_kernels import (
    flash_attention,
    flash_attention_3,
    sdpa_attention,
    varlen_attention,
)
from ufork.model.layers.causal import MAX_EXPLICIT_LENGTH, causal_attention, explicit_attention
from ufork.model.layers.segments import Segments
from ufork.vocabulary import Task


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
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = SimpleNamespace(segment_starts_S1=starts, longest_segment=max(lengths), positions_T=positions)
    return tensors, Segments(packed)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(lengths=LENGTHS, num_key_value_heads=st.integers(1, 3), group=st.integers(1, 3))
def test_sdpa_equals_the_formula(lengths, num_key_value_heads, group):
    tensors, segments = inputs_of(lengths, num_key_value_heads, group)
    found, expected = sdpa_attention(*tensors, segments), written_out(*tensors, segments.starts_S1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, reference in zip(*(gradients_of(out, tensors) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_stay_in_their_segment(dtype):
    tensors, segments = inputs_of([2, 5, 3], 2, 1, dtype)
    expected = sdpa_attention(*tensors, segments)
    with torch.no_grad():
        for tensor in tensors:
            tensor[2:7] = torch.nan
    found = sdpa_attention(*tensors, segments)
    assert found[2:7].isnan().all()
    assert found[:2].equal(expected[:2]) and found[7:].equal(expected[7:])


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


def check_varlen_arguments(q, k, v, starts_q, starts_k, longest_q, longest_k):
    """What FlashAttention's varlen kernels require of their tensors."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    assert q.dim() == k.dim() == v.dim() == 3 and k.shape == v.shape
    assert q.shape[0] == k.shape[0] and q.shape[2] == k.shape[2] and q.shape[1] % k.shape[1] == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    for starts, longest in ((starts_q, longest_q), (starts_k, longest_k)):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and starts.device == q.device
        assert (starts[0], starts[-1]) == (0, len(q)) and (starts.diff() > 0).all()
        assert isinstance(longest, int) and longest == starts.diff().max()


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
):
    """flash-attn 2.8.3's, by the formula."""
    check_varlen_arguments(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal and softmax_scale is None and dropout_p == 0.0
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return written_out(q, k, v, cu_seqlens_q)


def flash_attn_3_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    deterministic=False,
):
    """That of FlashAttention-3's first releases, which returned the log-sum-exps too."""
    check_varlen_arguments(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert causal and softmax_scale is None and seqused_q is None and seqused_k is None
    return written_out(q, k, v, cu_seqlens_q), torch.empty(q.shape[1], len(q))


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """torch 2.13's."""
    assert query.shape[1] == key.shape[1] or enable_gqa
    return varlen_attn_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, groups=True
    )


def varlen_attn_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), groups=False
):
    """torch 2.11's: it has no word on grouped heads, so they must not occur."""
    check_varlen_arguments(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    assert groups or query.shape[1] == key.shape[1]
    assert window_size == (-1, 0) and isinstance(window_size, tuple) and scale is None
    return written_out(query, key, value, cu_seq_q)


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins of the packages; a test removes those that it wants absent."""

    def install(module, function):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function.__name__: function}))

    flash_attn_3 = SimpleNamespace(flash_attn_varlen_func=flash_attn_3_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", flash_attn_3)
    install("flash_attn", flash_attn_varlen_func)
    install("torch.nn.attention.varlen", varlen_attn)


KERNELS = [flash_attention, flash_attention_3, varlen_attention]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("num_key_value_heads", "group"), [(2, 1), (2, 2)])
def test_kernels_are_called_with_valid_arguments(packages, kernel, num_key_value_heads, group):
    tensors, segments = inputs_of([3, 7, 1], num_key_value_heads, group, torch.bfloat16)
    found, expected = kernel(*tensors, segments), sdpa_attention(*tensors, segments)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_heads_are_repeated_for_a_torch_that_cannot_share_them(packages, monkeypatch):
    monkeypatch.setattr(sys.modules["torch.nn.attention.varlen"], "varlen_attn", varlen_attn_2_11)
    tensors, segments = inputs_of([3, 7, 1], 2, 3, torch.bfloat16)
    found, expected = varlen_attention(*tensors, segments), sdpa_attention(*tensors, segments)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    for ours, reference in zip(*(gradients_of(out, tensors) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0.03, atol=0.03)


def test_a_deterministic_backward_pass_is_asked_for_where_torch_is_told_to_be(packages):
    tensors, segments = inputs_of([3, 2], 1, 1, torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    try:
        flash_attention(*tensors, segments)  # the stand-in compares
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("task", Task)
def test_a_whole_model_in_half_precision_calls_kernels_with_valid_arguments(packages, kernel, task):
    """Queries, keys and segments as the decoder makes them, padding included."""
    model = tiny_model(tiny_config()).bfloat16()
    sequence = packed_sequence(task, texts=[[5, 6, 7], [8, 9]])
    expected = model(sequence)
    model.kernel = kernel
    torch.testing.assert_close(model(sequence), expected, rtol=0.01, atol=0.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_padded_form_is_not_made_for_kernels_of_variable_lengths(packages, kernel):
    tensors, segments = inputs_of([3, 7, 1], 1, 1, torch.bfloat16)
    kernel(*tensors, segments)
    assert "padded" not in vars(segments)
    sdpa_attention(*tensors, segments)
    assert "padded" in vars(segments)


def test_the_stand_ins_have_the_signatures_of_the_packages():
    genuine = inspect.signature(importlib.import_module("torch.nn.attention.varlen").varlen_attn).parameters
    newer = {"enable_gqa"}  # torch 2.12
    assert inspect.signature(varlen_attn).parameters.keys() - newer <= genuine.keys()
    flash = pytest.importorskip("flash_attn")
    genuine = list(inspect.signature(flash.flash_attn_varlen_func).parameters)
    assert genuine[:14] == list(inspect.signature(flash_attn_varlen_func).parameters)


V100, A100, H100, B200 = (7, 0), (8, 0), (9, 0), (10, 0)
FLASH, FLASH_3, VARLEN = "flash_attn", "flash_attn_interface", "torch.nn.attention.varlen"


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "absent", "kernel", "level", "said"),
    [
        ("cpu", torch.bfloat16, None, [], sdpa_attention, "INFO", "the device is cpu"),
        ("cuda", torch.float32, H100, [], sdpa_attention, "WARNING", "half precision, not torch.float32"),
        ("cuda", torch.bfloat16, V100, [], sdpa_attention, "WARNING", "needs compute capability 8.0, this GPU has 7.0"),
        ("cuda", torch.bfloat16, H100, [], flash_attention_3, "INFO", "FlashAttention-3"),
        ("cuda", torch.bfloat16, A100, [], flash_attention, "INFO", "flash-attn 2"),
        ("cuda", torch.bfloat16, B200, [], flash_attention, "INFO", "flash-attn 2"),
        ("cuda", torch.float16, H100, [FLASH_3], flash_attention, "INFO", "flash-attn 2"),
        ("cuda", torch.bfloat16, A100, [FLASH], varlen_attention, "INFO", "FlashAttention-2 of torch"),
        ("cuda", torch.bfloat16, H100, [FLASH, FLASH_3], varlen_attention, "INFO", "FlashAttention-2 of torch"),
        ("cuda", torch.bfloat16, A100, [FLASH, VARLEN], sdpa_attention, "WARNING", "Install torch 2.13"),
    ],
)
def test_the_kernel_is_chosen_once_and_logged(
    packages, monkeypatch, caplog, device, dtype, capability, absent, kernel, level, said
):
    for package in absent:
        monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    with caplog.at_level(logging.INFO):
        assert choose_attention_kernel(torch.device(device), dtype) is kernel
    assert [(said in record.message, record.levelname) for record in caplog.records] == [(True, level)]
    assert ("memory and work" in caplog.text) == (level == "WARNING")


def test_torchs_kernels_are_not_chosen_from_a_torch_built_without_them(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: A100)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert choose_attention_kernel(torch.device("cuda"), torch.bfloat16) is sdpa_attention


class ClaimsCuda(torch.Tensor):
    """A tensor of the CPU that says it is on a CUDA device."""

    is_cuda, is_cpu = True, False


@pytest.mark.parametrize(("dtype", "shared"), [(torch.float32, False), (torch.bfloat16, True)])
def test_padded_attention_on_cuda_avoids_the_kernel_that_keeps_scores(monkeypatch, dtype, shared):
    """torch's fused fp32 kernel needs equal heads; a plain call with shared heads keeps S x H x L x L scores."""
    tensors = [torch.randn(2, heads, 6, 8).to(dtype) for heads in (6, 2, 2)]
    expected = causal_attention(*tensors)
    backends, torchs = [], F.scaled_dot_product_attention

    def attention(query, key, value, *, is_causal, enable_gqa):
        backends.append(torch.backends.cuda.cudnn_sdp_enabled())
        assert enable_gqa == shared == (query.shape[1] != key.shape[1])
        return torchs(query, key, value, is_causal=is_causal, enable_gqa=enable_gqa)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    found = causal_attention(*(x.as_subclass(ClaimsCuda) for x in tensors)).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert backends == [False]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kernel", "dtype", "package"),
    [
        (flash_attention, torch.bfloat16, FLASH),
        (flash_attention_3, torch.bfloat16, FLASH_3),
        (varlen_attention, torch.bfloat16, VARLEN),
        (sdpa_attention, torch.bfloat16, "torch"),
        (sdpa_attention, torch.float32, "torch"),
    ],
)
def test_kernels_equal_the_formula_on_a_gpu(kernel, dtype, package):
    pytest.importorskip(package)
    if kernel is flash_attention_3 and torch.cuda.get_device_capability()[0] != H100[0]:
        pytest.skip("FlashAttention-3 needs a Hopper GPU")
    lengths = [300, 1, 77, 128]
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(sum(lengths), heads, 64, generator=generator).requires_grad_() for heads in (14, 2, 2)]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = SimpleNamespace(
        segment_starts_S1=starts.cuda(), longest_segment=max(lengths), positions_T=positions.cuda()
    )
    tensors = [x.detach().to("cuda", dtype).requires_grad_() for x in plain]
    found, expected = kernel(*tensors, Segments(packed)), written_out(*plain, starts)
    pairs = [(found, expected), *zip(gradients_of(found.cpu(), tensors), gradients_of(expected, plain), strict=True)]
    for ours, reference in pairs:
        error = (ours.cpu().float() - reference).norm() / reference.norm()
        assert error < (0.02 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.gpu
def test_a_gpu_gets_a_kernel_for_its_capability():
    newer = torch.cuda.get_device_capability()[0] >= A100[0]
    kernel = choose_attention_kernel(torch.device("cuda"), torch.bfloat16)
    assert (kernel is not sdpa_attention) == newer
