"""Reports a figure, then aborts, as NCCL's watchdog does."""

import os


def run(report, *, cpu):
    report.figure("before", 1)
    os.abort()
