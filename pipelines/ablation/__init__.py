"""Suites of runs that differ in what their arms declare: `ufork ablate`."""
