"""Readers of file formats that several inputs share: Parquet, JSON, delimited text, Arrow values."""
