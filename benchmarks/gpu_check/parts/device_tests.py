"""The tests that need a GPU (`pytest -m gpu`), where pytest is installed: how many passed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check.report import Report

NEEDED = ("pytest", "hypothesis")
ROOT = Path(__file__).parents[3]
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)")
BROKEN_TEST = re.compile(r"^ERROR (\S+::\S+)", re.MULTILINE)
"""A line of pytest's summary on a test whose fixture raised; a file that cannot be imported has no `::`."""
SECONDS_TO_REPORT = 5.0
MARKER = "pytest.mark.gpu"


def run(report: Report, *, cpu: bool) -> None:
    """Fails if a test does; test files that need a missing package are counted as errors, which decide nothing."""
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing or not (ROOT / "tests").is_dir():
        report.skip("tests", f"not here: {', '.join(missing) or 'the folder tests'}")
        report.headline("pytest or tests not here")
        return
    options = ["-v", "-m", "gpu", "--no-header", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, *files_with_device_tests()]
    limit = report.seconds_left - SECONDS_TO_REPORT
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as late:
        print((late.stdout or b"").decode(errors="replace"))
        report.check("tests", False, f"not done after {limit:.0f} s; the output shows which test was running")
        return
    print(done.stdout, done.stderr)
    report_outcome(report, done.stdout, done.returncode)


def files_with_device_tests() -> list[str]:
    """Returns the test files that mention the marker; collecting all others would take longer than the tests."""
    return sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if MARKER in path.read_text("utf-8"))


def report_outcome(report: Report, printed: str, returncode: int) -> None:
    """Reports the counts of pytest's last line; a run without a passed test, or with a failed one, is a fault."""
    last = (printed.strip().splitlines() or ["nothing was printed"])[-1]
    counts = {kind: int(number) for number, kind in COUNT.findall(last)}
    report.figure("tests", counts)
    report.headline(", ".join(f"{number} {kind}" for kind, number in counts.items()) or last)
    broken = BROKEN_TEST.findall(printed)
    passed = counts.get("passed", 0) > 0 and not counts.get("failed") and not broken
    report.check("tests", passed, f"{last}; errors in: {', '.join(broken) or 'no test'}; exit code {returncode}")
