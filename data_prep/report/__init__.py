"""Reports what happened to a collection: drop counts, statistics, contact sheet."""
