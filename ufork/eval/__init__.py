"""How well a model answers and draws, and the page that reports it."""
