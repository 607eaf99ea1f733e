"""The demo's benchmark: questions about scenes, and drawings judged by a detector."""
