"""Metrics that do not depend on a benchmark."""
