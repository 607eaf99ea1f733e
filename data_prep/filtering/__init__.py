"""Filters of records, and the search for duplicates."""
