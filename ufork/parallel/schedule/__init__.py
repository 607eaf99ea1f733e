"""Schedules the forward and backward passes of each stage. Pure Python: importable without torch."""
