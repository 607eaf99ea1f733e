"""Child processes: starting them, noticing their death, carrying their errors over."""
