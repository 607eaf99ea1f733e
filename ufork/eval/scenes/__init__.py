"""The demo's benchmark: questions about scenes, and drawings scored by a detector."""
