"""Kernels around the attention, each by library: RMSNorm, rotary embedding, SwiGLU, the loss with its product.

Then a decoder layer against fp32 on the CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.measuring import (
    attempt,
    described,
    device_of,
    forward_and_backward,
    half_precision,
    largest_error,
    memory_gb,
    with_gradients,
)
from benchmarks.gpu_check.plain_training import ROUNDING_ONLY
from benchmarks.gpu_check.report import Report
from benchmarks.workloads.random_sequences import RandomSequences
from ufork.model.config import Dimensions, ModelConfig
from ufork.model.decoder import gated
from ufork.model.kernels import choose_kernels, compiled_kernels, use_kernels
from ufork.model.layers.attention import PackedAttention, choose_attention_kernel
from ufork.model.layers.cross_entropy import PLAIN_CHUNKS, ChunkKernels, sum_cross_entropy
from ufork.model.layers.liger import liger_gated, liger_rotate
from ufork.model.layers.normalization import fused_rms_norm, rms_norm
from ufork.model.layers.rotary import RotaryKernel, rotary_angles, rotate
from ufork.model.unifork import DecoderStack
from ufork.vocabulary import Task

EPS = 1e-6
MOST_ERROR = 0.02
TARGETS, CPU_TARGETS = (500, 8192), (50, 120)
FEWER_TARGETS, MUCH_MEMORY_GB = (500, 2048), 30.0
"""For GPUs with less memory than that: the whole logits of 8192 targets, in fp32 with their gradients, are 15 GB."""
VOCABULARY, CPU_VOCABULARY = 151_936, 700
TOKENS, CPU_TOKENS = 8192, 64
LAYER_TOKENS, CPU_LAYER_TOKENS = 1024, 128
"""Tokens of the decoder layer, which is also computed on the CPU in fp32."""


def run(report: Report, *, cpu: bool) -> None:
    """Fails if one of ufork's functions is wrong on this device."""
    device = device_of(cpu=cpu)
    model = ModelConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4) if cpu else ModelConfig()
    num_tokens = CPU_TOKENS if cpu else TOKENS
    torch.manual_seed(0)
    _norms(report, num_tokens, model.hidden_size, device)
    _rotaries(report, num_tokens, model, device)
    _gates(report, num_tokens, model.intermediate_size, device)
    targets = CPU_TARGETS if cpu else TARGETS if memory_gb(device) > MUCH_MEMORY_GB else FEWER_TARGETS
    _losses(report, targets, CPU_VOCABULARY if cpu else VOCABULARY, model.hidden_size, device)
    _decoder_layer(report, model, CPU_LAYER_TOKENS if cpu else LAYER_TOKENS, device)


def _norms(report: Report, num_tokens: int, hidden_size: int, device: torch.device) -> None:
    inputs = [torch.randn(num_tokens, hidden_size, device=device), torch.rand(hidden_size, device=device) + 0.5]
    functions: dict[str, Callable[..., Tensor]] = {
        "chosen": choose_kernels(device).rms_norm,
        "plain": rms_norm,
        "torch": fused_rms_norm,
    }
    _compare(report, "RMSNorm", {name: partial(function, eps=EPS) for name, function in functions.items()}, inputs)


def _rotaries(report: Report, num_tokens: int, model: ModelConfig, device: torch.device) -> None:
    heads = (model.num_attention_heads, model.num_key_value_heads)
    angles = rotary_angles(torch.arange(num_tokens), model.head_dim, model.rope_theta).to(device)
    functions = {
        "chosen": choose_kernels(device).rotary,
        "plain": rotate,
        "compiled": compiled_kernels().rotary,
        "liger": liger_rotate,
    }
    inputs = [torch.randn(num_tokens, number, model.head_dim, device=device) for number in heads]
    _compare(
        report,
        "rotary embedding",
        {name: partial(_rotated, kernel=kernel, angles_TW=angles) for name, kernel in functions.items()},
        inputs,
    )


def _rotated(query_THW: Tensor, key_TGW: Tensor, *, kernel: RotaryKernel, angles_TW: Tensor) -> Tensor:
    cos_TW, sin_TW = angles_TW.cos().to(query_THW.dtype), angles_TW.sin().to(query_THW.dtype)
    return torch.cat(kernel(query_THW.clone(), key_TGW.clone(), cos_TW, sin_TW), dim=1)  # which may write over them


def _gates(report: Report, num_tokens: int, width: int, device: torch.device) -> None:
    functions = {
        "chosen": choose_kernels(device).gate,
        "plain": gated,
        "compiled": compiled_kernels().gate,
        "liger": liger_gated,
    }
    inputs = [torch.randn(num_tokens, width, device=device) for _ in range(2)]
    _compare(report, "SwiGLU", {name: partial(_copied, function) for name, function in functions.items()}, inputs)


def _copied(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*(x.clone() for x in inputs))  # a kernel may write over them


def _compare(
    report: Report, operation: str, functions: Mapping[str, Callable[..., Tensor]], inputs: Sequence[Tensor]
) -> None:
    """Reports every function in half precision against the plain one in fp32."""
    gradient = torch.randn_like(functions["plain"](*inputs))
    expected = with_gradients(functions["plain"], inputs, gradient)
    halves = [tensor.to(half_precision(gradient.device)) for tensor in inputs]
    for name, function in functions.items():
        found = attempt(partial(forward_and_backward, function, halves, gradient.to(halves[0]), expected))
        report.figure(f"{operation}, {name}", found)
        if name == "chosen":
            _require_small(report, operation, found)
            report.headline(f"{operation} {described(found)}")


def _losses(report: Report, counts: tuple[int, ...], vocab_size: int, hidden_size: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocab_size, hidden_size, generator=generator).to(device) * hidden_size**-0.5
    for count in counts:
        hidden = torch.randn(count, hidden_size, generator=generator).to(device)
        targets = torch.randint(vocab_size, (count,), generator=generator).to(device)
        one = torch.ones((), device=device)
        expected = with_gradients(partial(_whole_logits, targets=targets), (hidden, weight), one)
        halves = [tensor.to(half_precision(device)) for tensor in (hidden, weight)]
        functions: dict[str, Callable[..., Tensor]] = {
            "chosen": partial(_summed_loss, targets=targets, kernels=choose_kernels(device).chunks),
            "plain": partial(_summed_loss, targets=targets, kernels=PLAIN_CHUNKS),
            "whole logits": partial(_whole_logits, targets=targets),
            "liger": partial(_liger_loss, targets=targets),
        }
        for name, function in functions.items():
            found = attempt(partial(forward_and_backward, function, halves, one, expected))
            report.figure(f"loss of {count} targets, {name}", found)
            if name == "chosen":
                _require_small(report, f"loss of {count} targets", found)
                report.headline(f"loss of {count}: {described(found)}")


def _summed_loss(hidden_RD: Tensor, weight_VD: Tensor, *, targets: Tensor, kernels: ChunkKernels) -> Tensor:
    return sum_cross_entropy(hidden_RD, weight_VD, None, targets, kernels=kernels)


def _whole_logits(hidden_RD: Tensor, weight_VD: Tensor, *, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_RD, weight_VD).float(), targets, reduction="sum")


def _liger_loss(hidden_RD: Tensor, weight_VD: Tensor, *, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    if not hidden_RD.is_cuda:
        raise RuntimeError("needs CUDA")
    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VD, hidden_RD, targets).float()


def _decoder_layer(report: Report, config: ModelConfig, num_tokens: int, device: torch.device) -> None:
    """Compares a layer and the gradients of its input and weights, so that any fused kernel on its path is covered."""
    dimensions = Dimensions(vocab_size=512, codebook_size=64, code_width=16, codes_per_position=4)
    random = RandomSequences(dimensions=dimensions, seq_len=num_tokens, image_positions=32)
    packed = random.sequence(Task.GENERATION, np.random.default_rng(0))
    torch.manual_seed(0)
    layer = DecoderStack(config, first_layer=0, num_layers=1)
    hidden, gradient = (torch.randn(num_tokens, config.hidden_size) for _ in range(2))

    def passes(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        moved = layer.to(device, dtype)
        use_kernels(moved, choose_kernels(device))
        there = packed.to(device)
        attend = PackedAttention(there, choose_attention_kernel(device, dtype))
        leaf = hidden.to(device, dtype).requires_grad_()
        output = moved(leaf, there.positions_T, attend)
        weights = [weight for name, weight in moved.named_parameters() if not name.endswith(ROUNDING_ONLY)]
        return [output.detach(), *torch.autograd.grad(output, [leaf, *weights], gradient.to(device, dtype))]

    expected = [tensor.clone() for tensor in passes(torch.device("cpu"), torch.float32)]
    for dtype, most in {torch.float32: 1e-4, half_precision(device): MOST_ERROR}.items():
        error = largest_error(passes(device, dtype), expected)
        report.figure(f"decoder layer, {dtype}", {"error": error})
        report.check(f"decoder layer, {dtype}", error < most, f"error {error:.2g}, expected below {most}")


def _require_small(report: Report, name: str, found: dict[str, float]) -> None:
    error = found.get("error", float("inf"))
    report.check(name, error < MOST_ERROR, f"{found}, expected an error below {MOST_ERROR}")
