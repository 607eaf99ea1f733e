"""Checks of the machine: what it has, what ufork uses instead of what is missing, and how to get it."""
