"""Raises."""


def run(report, *, cpu):
    report.figure("before", 1)
    raise RuntimeError("no kernel image is available")
