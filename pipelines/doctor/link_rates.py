"""Measures transfers and sums between the two ranks of torch.distributed's world; both call the same functions."""

import torch
import torch.distributed as dist

from pipelines.doctor.device_rates import seconds_of

SENT_BYTES = 1 << 22
SUMMED_BYTES, NUM_SUMS = 1 << 20, 20
CUDA_BYTES = 1 << 28
"""Sent and summed on CUDA."""


def link_rates(rank: int, device: torch.device) -> dict[str, float]:
    """Returns bytes per second that are sent and summed, and the seconds of the smallest transfer and sum."""
    sent_bytes, summed_bytes = (CUDA_BYTES, CUDA_BYTES) if device.type == "cuda" else (SENT_BYTES, SUMMED_BYTES)
    return {
        "sent": sent_bytes / _exchange_seconds(rank, sent_bytes, device),
        "transfer_seconds": _exchange_seconds(rank, 1, device),
        "summed": summed_bytes / _sum_seconds(summed_bytes, device),  # a ring of two moves each byte once
        "sum_seconds": _sum_seconds(4, device),
    }


def _exchange_seconds(rank: int, num_bytes: int, device: torch.device) -> float:
    """Returns the time of one transfer from one rank to the other."""
    buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def there_and_back() -> None:
        for sender in (0, 1):
            dist.send(buffer, 1 - rank) if rank == sender else dist.recv(buffer, 1 - rank)

    return seconds_of(there_and_back, device) / 2


def _sum_seconds(num_bytes: int, device: torch.device) -> float:
    """Returns the time of one all-reduce of fp32 numbers over both ranks, averaged over many as in a pass."""
    buffer = torch.zeros(num_bytes // 4, device=device)

    def sums() -> None:
        for _ in range(NUM_SUMS):
            dist.all_reduce(buffer)

    return seconds_of(sums, device) / NUM_SUMS
