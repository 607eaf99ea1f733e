"""Measurements of exported models."""
