"""Moves data between ranks: stage worlds, the bridge between stages, point-to-point links."""
