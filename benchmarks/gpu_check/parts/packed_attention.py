"""Attention over packed sequences of 8192 tokens, by each kernel: samples of one length, and one long with many short.

A kernel that plans or compiles for each shape is slow at its first call of one; every packed sequence has a new shape.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.measuring import (
    attempt,
    described,
    device_of,
    forward_and_backward,
    half_precision,
    wall_seconds,
    with_gradients,
)
from benchmarks.gpu_check.report import Report
from ufork.data.packing import pack_sequence
from ufork.data.prompts import EncodedSample
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.layers.attention_kernels import (
    AttentionKernel,
    flash_attention,
    flash_attention_3,
    sdpa_attention,
    varlen_attention,
)
from ufork.model.layers.segments import Segments
from ufork.vocabulary import Task

HEADS = (14, 2, 64)
"""Query heads, key and value heads, features, at the released size; likewise CPU_HEADS."""
CPU_HEADS = (4, 2, 16)
SEGMENTATIONS = {"equal": [800] * 10, "uneven": [4096] + [100] * 40}
"""Tokens of the samples; the rest of 8192 is padding."""
CPU_SEGMENTATIONS = {"equal": [30] * 8, "uneven": [128] + [12] * 10}
SEQ_LEN, CPU_SEQ_LEN = 8192, 256
NEW_SHAPES = 5
MOST_ERROR = 0.02


def run(report: Report, *, cpu: bool) -> None:
    """Fails if the kernel that ufork uses is wrong."""
    device = device_of(cpu=cpu)
    seq_len = CPU_SEQ_LEN if cpu else SEQ_LEN
    kernels = _kernels(device)
    inputs = _inputs(seq_len, CPU_HEADS if cpu else HEADS, device)
    halves = [tensor.to(half_precision(device)) for tensor in inputs]
    for name, lengths in (CPU_SEGMENTATIONS if cpu else SEGMENTATIONS).items():
        segments = _segments(lengths, seq_len, device)
        expected = with_gradients(partial(_reference, starts=segments.starts_S1.tolist()), inputs[:3], inputs[3])
        for kernel_name, kernel in kernels.items():
            function = partial(_called, kernel, segments)
            found = attempt(partial(forward_and_backward, function, halves[:3], halves[3], expected))
            report.figure(f"{name}, {kernel_name}", found)
            if kernel_name == "chosen":
                error = found.get("error", float("inf"))
                report.check(f"{name}, chosen", error < MOST_ERROR, f"{found}, expected an error below {MOST_ERROR}")
                report.headline(f"{name} {described(found)}")
    for kernel_name, kernel in kernels.items():
        seconds = attempt(partial(_first_calls, kernel, halves, device))
        report.figure(f"first calls of new shapes, {kernel_name}", seconds)


def _kernels(device: torch.device) -> dict[str, AttentionKernel]:
    """Returns the chosen kernel, and all that there are, by name."""
    every = (sdpa_attention, varlen_attention, flash_attention, flash_attention_3)
    chosen = choose_attention_kernel(device, half_precision(device))
    return {"chosen": chosen, **{kernel.__name__: kernel for kernel in every}}


def _called(kernel: AttentionKernel, segments: Segments, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return kernel(query, key, value, segments)


def _reference(query_THW: Tensor, key_TGW: Tensor, value_TGW: Tensor, *, starts: Sequence[int]) -> Tensor:
    """Returns THW: torch's plainest attention, one sample at a time."""
    outputs = []
    with sdpa_kernel(SDPBackend.MATH):
        for start, stop in zip(starts, starts[1:], strict=False):
            query, key, value = (x[start:stop].transpose(0, 1)[None] for x in (query_THW, key_TGW, value_TGW))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


def _inputs(seq_len: int, heads: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Returns query, key, value and the gradient of the output."""
    num_heads, num_key_value_heads, features = heads
    generator = torch.Generator().manual_seed(0)
    counts = (num_heads, num_key_value_heads, num_key_value_heads, num_heads)
    return [torch.randn(seq_len, count, features, generator=generator).to(device) for count in counts]


def _segments(lengths: Sequence[int], seq_len: int, device: torch.device) -> Segments:
    samples = [
        EncodedSample(
            id="random",
            task=Task.UNDERSTANDING,
            token_ids_L=np.zeros(length, np.int64),
            labels_L=np.zeros(length, np.int64),
            image_begin=None,
            codes_IC=np.zeros((0, 1), np.int64),
        )
        for length in lengths
    ]
    return Segments(pack_sequence(samples, seq_len=seq_len, padding_id=0).to(device))


def _first_calls(kernel: AttentionKernel, halves: Sequence[Tensor], device: torch.device) -> dict[str, Any]:
    """Returns the milliseconds of the first and the second call of each of several new segmentations."""
    rng, seq_len = np.random.default_rng(1), len(halves[0])
    first, second = [], []
    for number in range(NEW_SHAPES):
        shares = rng.dirichlet(np.full(6 + number, 2.0))
        segments = _segments([int(share * seq_len * 0.97) + 1 for share in shares], seq_len, device)
        action: Callable[[], Any] = partial(with_gradients, partial(_called, kernel, segments), halves[:3], halves[3])
        first.append(round(wall_seconds(action, device) * 1e3, 2))
        second.append(round(wall_seconds(action, device) * 1e3, 2))
    return {"first_ms": first, "second_ms": second}
