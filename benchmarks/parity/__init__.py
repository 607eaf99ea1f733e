"""Comparison of ufork with recorded tensors of UniFork's release."""
