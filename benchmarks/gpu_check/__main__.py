"""Entry program of the check; see the package."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.part_list import CPU_TOTAL_SECONDS, TOTAL_SECONDS, Part, choose_parts
from benchmarks.gpu_check.part_process import run_part
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
    prepare_environment(os.environ, num_local_ranks=1)
    try:
        results = run_parts(choose_parts(arguments.parts), arguments.output, cpu=arguments.cpu)
    except UforkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(results.table())
    print(f"results: {arguments.output}")
    return 0 if results.passed else 1


def run_parts(parts: Sequence[Part], output: Path, *, cpu: bool) -> Results:
    """Runs the parts one after the other, and writes what is known of them to `output` all the time.

    Raises:
        StorageError: `output` cannot be written.
    """
    results = Results(path=output, cpu=cpu)
    deadline = time.monotonic() + (CPU_TOTAL_SECONDS if cpu else TOTAL_SECONDS)
    for part in parts:
        result = results.parts[part.name] = PartResult()
        results.write()
        left = deadline - time.monotonic()
        if cpu and part.needs_cuda:
            result.status, result.headlines = "skipped", ["needs CUDA"]
        elif left <= 0:
            result.status = "skipped" if part.is_optional else "failed"
            result.error = "not run: the parts before it have used up the time; run it alone with --parts"
        else:
            run_part(
                part,
                result,
                limit_seconds=min(part.limit(cpu=cpu), left),
                cpu=cpu,
                context=process_context(),
                progress=results.write,
            )
        results.write()
        print(f"{part.name}: {result.status} after {result.seconds:.1f} s", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
