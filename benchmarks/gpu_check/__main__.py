"""Entry program of the check; see the package."""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.part_list import CORES_PER_PART, CPU_TOTAL_SECONDS, TOTAL_SECONDS, Part, choose_parts
from benchmarks.gpu_check.part_process import PartProcess, take_messages
from benchmarks.gpu_check.report import PartResult
from benchmarks.gpu_check.results import Results
from pipelines.launch.ranks import prepare_environment, process_context
from ufork.errors import UforkError


def main() -> int:
    """Runs the parts and returns the exit code: 0 if none failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=main.__doc__)
    parser.add_argument("--cpu", action="store_true", help="run at tiny sizes on the CPU; skip what only CUDA has")
    parser.add_argument("--parts", metavar="NAMES", help="run only these parts, separated by commas")
    parser.add_argument(
        "--output", type=Path, default=Path("gpu_check.json"), help="JSON file of the results (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.cpu:
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    most_together = max(1, len(os.sched_getaffinity(0)) // CORES_PER_PART)
    prepare_environment(os.environ, num_local_ranks=most_together)  # threads that wait for each other's cores hang
    try:
        results = run_parts(
            choose_parts(arguments.parts), arguments.output, cpu=arguments.cpu, most_together=most_together
        )
    except UforkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(results.table())
    print(f"results: {arguments.output}")
    return 0 if results.passed else 1


def run_parts(parts: Sequence[Part], output: Path, *, cpu: bool, most_together: int = 1) -> Results:
    """Runs the parts in their order, and writes what is known of them to `output` all the time.

    Args:
        parts: what to run.
        output: the JSON file.
        cpu: whether to run at tiny sizes on the CPU.
        most_together: how many parts without timings may run at the same time.

    Raises:
        StorageError: `output` cannot be written.
    """
    results = Results(path=output, cpu=cpu)
    deadline = time.monotonic() + (CPU_TOTAL_SECONDS if cpu else TOTAL_SECONDS)
    waiting, running = deque(parts), list[PartProcess]()
    try:
        while waiting or running:
            while waiting and may_start(waiting[0], running, most_together=most_together):
                part = waiting.popleft()
                result = results.parts[part.name] = PartResult()
                running += _started(part, result, cpu=cpu, seconds_left=deadline - time.monotonic())
            results.write()
            take_messages(running)
            for process in running:
                if process.has_ended:
                    _print_end(process.part, process.result)
            running = [process for process in running if not process.has_ended]
    finally:
        for process in running:
            process.kill()
    results.write()
    return results


def may_start(part: Part, running: Sequence[PartProcess], *, most_together: int) -> bool:
    """Returns whether `part` may run beside `running`: a part with timings runs alone."""
    timed = part.is_timed or any(process.part.is_timed for process in running)
    return len(running) < (1 if timed else most_together)


def _started(part: Part, result: PartResult, *, cpu: bool, seconds_left: float) -> list[PartProcess]:
    """Returns the part's process; none if there is no reason or no time to run it, which `result` then says."""
    if cpu and part.needs_cuda:
        result.status, result.headlines = "skipped", ["needs CUDA"]
    elif seconds_left <= 0:
        result.status = "failed"
        result.error = "not run: the parts before it have used up the time; run it alone with --parts"
    else:
        limit_seconds = min(part.limit(cpu=cpu), seconds_left)
        return [PartProcess(part, result, limit_seconds=limit_seconds, cpu=cpu, context=process_context())]
    _print_end(part, result)
    return []


def _print_end(part: Part, result: PartResult) -> None:
    print(f"{part.name}: {result.status} after {result.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
