"""Saving training state, and resuming from it in any layout."""
