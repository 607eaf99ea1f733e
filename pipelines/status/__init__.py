"""Reports where a run is, or why it ended."""
