"""From WebDataset shards to packed sequences of one task."""
