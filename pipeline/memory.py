"""Keeps freed memory in the process, because getting it back from the kernel is slow.

A first touch of a fresh page costs several times a warm one, and glibc returns every big buffer at
once: a training step that frees and allocates its activations pays for all of them again.
"""

from __future__ import annotations

import ctypes
import logging

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Ask glibc for one arena that is never trimmed and never mapped. A no-op elsewhere."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    results = [
        mallopt(M_ARENA_MAX, 1),
        mallopt(M_MMAP_MAX, 0),
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1),
    ]
    if not all(results):
        logging.getLogger("retort").warning("mallopt refused: %s", results)
