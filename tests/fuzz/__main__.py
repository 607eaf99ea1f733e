"""Fuzzes for a time, and prints how many inputs of each kind were tried and what was found.

    python -m tests.fuzz --seconds 600            all kinds, an equal time each
    python -m tests.fuzz --kind shard --first 17 --inputs 1     one input again

Each finding is saved as a file, with how to repeat it. The exit code is 1 if there is one.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from tests.fuzz.runner import Limits, run, save
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Parses the arguments, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time for all kinds together (default: 60)")
    parser.add_argument(
        "--kind", action="append", choices=list(TARGETS), help="only this kind; may be given several times"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--inputs", type=int, default=10**9, help="most inputs of a kind")
    parser.add_argument("--to", type=Path, default=Path("runs/fuzz"), help="folder of findings (default: runs/fuzz)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = arguments.kind or list(TARGETS)
    found = sum(_fuzz(kind, arguments, arguments.seconds / len(kinds)) for kind in kinds)
    print(f"{found} findings")
    return 1 if found else 0


def _fuzz(kind: str, arguments: argparse.Namespace, seconds: float) -> int:
    target, start = TARGETS[kind], time.monotonic()
    stop = arguments.first + arguments.inputs
    num_inputs, problems = 0, dict[str, int]()
    for finding in run(target, kind=kind, first=arguments.first, stop=stop, limits=Limits(), deadline=start + seconds):
        num_inputs += 1
        if finding is None:
            continue
        problems[finding.problem] = problems.get(finding.problem, 0) + 1
        if problems[finding.problem] == 1:
            print(f"{kind}: {finding.problem}: {save(finding, target, kind, arguments.to)}", flush=True)
    elapsed = time.monotonic() - start
    repeated = sum(problems.values())
    print(
        f"{kind:20} {num_inputs:8,} inputs in {elapsed:5.1f} s, {len(problems)} findings ({repeated} inputs)",
        flush=True,
    )
    return len(problems)


if __name__ == "__main__":
    sys.exit(main())
