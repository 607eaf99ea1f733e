"""Reports the state of a run, or why it ended."""
