"""How far ufork is from UniFork's release: `python -m benchmarks.parity [--golden FOLDER] [--tp 2]`.

    golden/ckpt -> ufork convert unifork -> ufork's values for the golden inputs -> largest differences, as a table

`tests/golden` holds inputs and outputs of the authors' code with tiny random weights (its README.md says how they were
made). What it does not hold, rows named `mixed`, is computed by an independent implementation of the specification
(`benchmarks/parity/reference.py`). With `--tp` above 1 the body and the heads are partitioned over that many ranks. The
table is Markdown; the exit code is 1 if a difference is larger than allowed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.parity import batches
from benchmarks.parity.partitioned import partitioned_values
from benchmarks.parity.values import all_values, differences, read_golden, table
from ufork.convert.unifork import convert

GOLDEN = Path("tests/golden")


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="folder of the golden tensors (default: %(default)s)"
    )
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks (default: %(default)s)")
    arguments = parser.parse_args()
    golden = read_golden(arguments.golden)
    with tempfile.TemporaryDirectory() as folder:
        convert(arguments.golden / "ckpt", Path(folder))
        if arguments.tp == 1:
            values = {**all_values(Path(folder), golden), **batches.ufork_values(Path(folder), golden)}
        else:
            values = partitioned_values(Path(folder), golden, tp=arguments.tp)
        golden |= batches.reference_values(arguments.golden / "ckpt", Path(folder), golden)
    found = differences(values, golden)
    print(table(found))
    return 0 if all(one.is_allowed for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
