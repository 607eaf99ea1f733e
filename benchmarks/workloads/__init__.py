"""What benchmarks run: models, and packed sequences as long as real ones."""
