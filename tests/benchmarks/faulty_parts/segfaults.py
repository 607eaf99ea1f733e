"""Reports a figure, then reads memory that is not there."""

import faulthandler


def run(report, *, cpu):
    report.figure("before", 1)
    faulthandler._sigsegv()
