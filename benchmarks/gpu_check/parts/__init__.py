"""The parts of the check: each module has `run(report, *, cpu)`, called in a process of its own."""
