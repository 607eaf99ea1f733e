"""Waits for ever inside a library that holds the interpreter's lock, as a driver may, with a child of its own."""

import ctypes
import subprocess


def run(report, *, cpu):
    report.figure("child", subprocess.Popen(["sleep", "600"]).pid)
    ctypes.PyDLL(None).sleep(600)
