"""Synthetic sources of the demo: scenes of sprites, and single emoji."""
