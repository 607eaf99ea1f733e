"""Image-text sources made into WebDataset shards of typed samples."""
