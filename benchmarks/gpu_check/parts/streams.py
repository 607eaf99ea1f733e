"""Whether kernels that wait in many streams keep another stream's kernel from starting.

NCCL's receives are such kernels: each waits in its own stream until the peer sends. CUDA has a few hardware queues
(CUDA_DEVICE_MAX_CONNECTIONS, 8 unless set) for all streams; a kernel behind a waiting one in the same queue waits, too.
"""

import os
import statistics
import time

from benchmarks.gpu_check.report import Report
from pipelines.launch.local_ranks import start_local_ranks
from pipelines.launch.ranks import process_context
from ufork.parallel.rank_environment import RankEnvironment

CONNECTIONS = (8, 32)
NUM_STREAMS = 12
SLEEP_SECONDS = 0.05
MOST_MILLISECONDS = 1.0
REPEATS = 5
LIMIT_SECONDS = 20.0


def run(report: Report, *, cpu: bool) -> None:
    """Measures in new processes, since CUDA reads the number of connections once."""
    for connections in CONNECTIONS:
        (milliseconds,) = start_local_ranks(
            _delay, 1, connections, context=process_context(), timeout_seconds=LIMIT_SECONDS
        )
        report.figure(f"{connections} connections", {"delay_ms": milliseconds})
        report.goal(
            f"delay, {connections} connections",
            milliseconds,
            f"below {MOST_MILLISECONDS} ms",
            met=milliseconds < MOST_MILLISECONDS,
        )
        report.headline(f"{connections} connections: {milliseconds:.2f} ms")


def _delay(rank_env: RankEnvironment, connections: int) -> float:
    """Returns the median milliseconds that a small kernel of the default stream takes beside waiting ones."""
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = str(connections)
    import torch

    streams = [torch.cuda.Stream() for _ in range(NUM_STREAMS)]
    number = torch.zeros(1, device="cuda")
    cycles = int(SLEEP_SECONDS * _cycles_per_second())
    delays = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(cycles)
                torch.cuda._sleep(cycles)
        start = time.perf_counter()
        number += 1
        torch.cuda.current_stream().synchronize()
        delays.append((time.perf_counter() - start) * 1e3)
    return statistics.median(delays)


def _cycles_per_second() -> float:
    import torch

    cycles = 10_000_000
    torch.cuda._sleep(cycles)
    torch.cuda.synchronize()
    start = time.perf_counter()
    torch.cuda._sleep(cycles)
    torch.cuda.synchronize()
    return cycles / (time.perf_counter() - start)
