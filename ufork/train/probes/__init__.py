"""Measurements of the model while it trains."""
