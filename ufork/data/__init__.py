"""Reads WebDataset shards and makes packed sequences of one task."""
