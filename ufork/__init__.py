"""ufork trains UniFork: a Y-shaped transformer that understands and generates images in one model."""

__version__ = "0.1.0"
