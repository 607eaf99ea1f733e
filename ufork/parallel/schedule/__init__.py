"""Which forward and backward passes each stage runs, in which order. Pure Python: importable without torch."""
