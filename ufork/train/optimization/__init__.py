"""What the optimizer updates, by which rule and how fast."""
