"""Decides which records become samples: filters and duplicate detection."""
