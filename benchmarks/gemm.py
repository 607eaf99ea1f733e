"""Rate of matrix products on this machine's CPU: `python -m benchmarks.gemm`.

A training step is compared with the best rate (benchmarks/train_step.py). The program prints one JSON object: GFLOP/s
in fp32 by shape, "rows x inputs x outputs", and library.
"""

import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ufork.model.layers.linear import ONEDNN_PRODUCTS

SHAPES = ((2048, 256, 1024), (4096, 320, 896), (4096, 320, 1792))
"""(rows, inputs, outputs), like those of a training step."""
REPEATS = 20

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def best_gemm_gflops(dtype: torch.dtype) -> float:
    """Returns the best rate over SHAPES and the CPU libraries of torch for `dtype`, in GFLOP/s."""
    return max(_rate(product, *shape, dtype) for shape in SHAPES for product in _products(dtype).values())


def _products(dtype: torch.dtype) -> dict[str, Product]:
    products: dict[str, Product] = {"torch": F.linear}
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():  # in bf16 F.linear already uses oneDNN
        products["onednn"] = lambda x, w: ONEDNN_PRODUCTS.outputs(x, w, None)
    return products


def _rate(product: Product, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    x, w = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    for _ in range(3):
        product(x, w)
    start = time.perf_counter()
    for _ in range(REPEATS):
        product(x, w)
    return 2 * rows * inputs * outputs * REPEATS / (time.perf_counter() - start) / 1e9


if __name__ == "__main__":
    rates = {
        " x ".join(map(str, shape)): {
            name: round(_rate(product, *shape, torch.float32)) for name, product in _products(torch.float32).items()
        }
        for shape in SHAPES
    }
    print(json.dumps(rates))
