"""Measures the rates of one device: products, a model's passes, copies, and on CUDA attention and the cost of a launch.

On CUDA every repetition runs between two synchronisations.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ufork.model.cost import BACKWARD_OVER_FORWARD, attention_flops
from ufork.model.decoder import SwiGLU
from ufork.model.initialization import initialize
from ufork.model.layers.attention import choose_attention_kernel
from ufork.model.layers.segments import Segments
from ufork.model.unifork import UniFork
from ufork.planning.workload import Workload

CPU_PRODUCT = (2048, 512, 1024)
"""Number of tokens, inputs and outputs of the matrix product that is timed on a CPU."""
PEAK_PRODUCT = (8192, 8192, 8192)
"""The same on CUDA, for the peak."""
CPU_COPIED_BYTES, CUDA_COPIED_BYTES = 1 << 26, 1 << 30
NUM_LAUNCHES = 200
REPEATS = 5


def device_rates(workload: Workload, device: torch.device) -> dict[str, float]:
    """Returns operations and bytes per second of `device`, and on CUDA the seconds of a launch."""
    copied_bytes = CUDA_COPIED_BYTES if device.type == "cuda" else CPU_COPIED_BYTES
    block = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    rates = {"copied": 2 * copied_bytes / seconds_of(block.clone, device)}
    del block
    if device.type != "cuda":
        return rates | {
            "product": product_rate(CPU_PRODUCT, _dtype(workload), device),
            "passes": pass_rate(workload, device),
        }
    rates["peak"] = product_rate(PEAK_PRODUCT, _dtype(workload), device)
    rates["product"] = model_product_rate(workload, device)
    rates["launch_seconds"] = launch_seconds(device)
    if workload.precision == "bf16":
        rates["attention"] = attention_rate(workload, device)
    return rates


def product_rate(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Returns the operations per second of one matrix product of `sizes`: tokens, inputs, outputs."""
    tokens, inputs, outputs = sizes
    x, weight = (torch.randn(rows, inputs, dtype=dtype, device=device) for rows in (tokens, outputs))
    return 2 * tokens * inputs * outputs / seconds_of(lambda: torch.nn.functional.linear(x, weight), device)


def model_product_rate(workload: Workload, device: torch.device) -> float:
    """Returns the operations per second of the products of a decoder layer's MLP, forward and backward."""
    config = workload.model
    mlp = SwiGLU(config.hidden_size, config.intermediate_size)
    products = [module.to(device, _dtype(workload)) for module in (mlp.up, mlp.down)]
    inputs = [torch.randn(workload.seq_len, m.in_features, dtype=_dtype(workload), device=device) for m in products]
    gradients = [torch.randn(workload.seq_len, m.out_features, dtype=_dtype(workload), device=device) for m in products]

    def passes() -> None:
        for module, x, gradient in zip(products, inputs, gradients, strict=True):
            module(x.requires_grad_()).backward(gradient)

    operations = 3 * 2 * 2 * workload.seq_len * config.hidden_size * config.intermediate_size
    return operations / seconds_of(passes, device)


def attention_rate(workload: Workload, device: torch.device) -> float:
    """Returns the operations per second of attention over segments of the workload, forward and backward."""
    config, length = workload.model, workload.segment_tokens
    count = max(workload.seq_len // length, 1)
    packed = replace(
        workload.sequence(workload.tasks[0]),
        segment_starts_S1=torch.arange(0, count * length + 1, length, dtype=torch.int32),
        longest_segment=length,
        positions_T=torch.arange(length).repeat(count),
    )
    segments = Segments(packed.to(device))
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    query, key, value = (
        torch.randn(count * length, n, config.head_dim, dtype=_dtype(workload), device=device, requires_grad=True)
        for n in heads
    )
    kernel = choose_attention_kernel(device, _dtype(workload))
    gradient = torch.randn_like(query)
    operations = (1 + BACKWARD_OVER_FORWARD) * attention_flops(config.attention_size, [length] * count)
    return operations / seconds_of(lambda: kernel(query, key, value, segments).backward(gradient), device)


def launch_seconds(device: torch.device) -> float:
    """Returns the host's time for one small operation, averaged over forward and backward."""
    x = torch.ones(8, device=device, requires_grad=True)

    def passes() -> None:
        y = x
        for _ in range(NUM_LAUNCHES):
            y = y * 2
        y.sum().backward()

    return seconds_of(passes, device) / (2 * NUM_LAUNCHES)


def pass_rate(workload: Workload, device: torch.device) -> float:
    """Returns the operations per second of forward and backward passes, over one packed sequence of each task."""
    model = UniFork(workload.model, workload.dimensions)
    initialize(model, 0)
    model = model.to(device, _dtype(workload))
    sequences = [workload.sequence(task).to(device) for task in workload.tasks]

    def passes() -> None:
        for sequence in sequences:
            model(sequence).backward()

    return sum(workload.cost(task).training for task in workload.tasks) / seconds_of(passes, device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Returns the median time of `action`, after one call that is not counted."""
    action()
    taken = []
    for _ in range(REPEATS):
        _wait_for(device)
        start = time.perf_counter()
        action()
        _wait_for(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dtype(workload: Workload) -> torch.dtype:
    return torch.bfloat16 if workload.precision == "bf16" else torch.float32
