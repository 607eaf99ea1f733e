"""Keeping freed memory in the process; otherwise Linux clears new pages for the tensors of every training step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3): from how many free bytes on the heap's end goes back to the system (-1: from none),
and how many allocations may be mappings of their own, which go back when they are freed."""


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory of any size; returns False where the C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0))
