"""Conversion of weights in other formats to ufork's."""
