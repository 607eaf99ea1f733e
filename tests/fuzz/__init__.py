"""Damaged and hostile inputs of every kind that ufork reads, made from valid ones (docs/security.md)."""
