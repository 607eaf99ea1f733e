"""Saves training state, and resumes from it under any layout."""
