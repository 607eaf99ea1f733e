"""The machine's own rate of matrix products, which a training step is compared with."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

SHAPES = ((2048, 256, 1024), (4096, 320, 896), (4096, 320, 1792))
"""Rows, inputs, outputs: like those of a step."""
REPEATS = 20


def best_gemm_gflops(dtype: torch.dtype) -> float:
    """The best rate over SHAPES and the libraries that torch has for `dtype` on the CPU, in GFLOP/s."""
    return max(_rate(product, *shape, dtype) for shape in SHAPES for product in _products(dtype))


def _products(dtype: torch.dtype) -> list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    products: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [F.linear]
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():  # in bf16 F.linear is oneDNN's already
        products.append(lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
    return products


def _rate(product: Callable[..., torch.Tensor], rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    x, w = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    for _ in range(3):
        product(x, w)
    start = time.perf_counter()
    for _ in range(REPEATS):
        product(x, w)
    return 2 * rows * inputs * outputs * REPEATS / (time.perf_counter() - start) / 1e9
