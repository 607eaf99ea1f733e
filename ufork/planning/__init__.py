"""Estimates what a layout costs before it runs: memory, step time, scaling."""
