"""Writes a run's HTML report from its files; needs no model."""
