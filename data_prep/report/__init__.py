"""Reports on a sharded collection: dropped records, statistics, contact sheet."""
