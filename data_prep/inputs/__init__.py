"""Real collections of images and text, read record by record."""
