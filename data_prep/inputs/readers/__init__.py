"""Readers of file formats: Parquet, JSON, CSV and TSV, Arrow values."""
