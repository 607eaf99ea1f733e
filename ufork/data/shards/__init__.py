"""The on-disk format of datasets: samples, shards, index, manifest, and their reader and writer."""
