"""Analyses of trained models and of suites of runs."""
