"""Readers of image and text collections, record by record."""
