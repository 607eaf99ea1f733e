"""Weights going in and out: memory and time."""
