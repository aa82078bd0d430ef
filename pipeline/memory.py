"""Memory that a training step gives back and asks for again, at a small price.

A first touch of a fresh page costs several times a warm one. Kept in one heap, the buffers of
batches of changing sizes never fit into each other's places and the heap grows by 40 MB a step; so
big ones stay mapped one by one, on huge pages, and small ones are kept (docs/notes.md).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from pathlib import Path

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
MAPS_BY_DEFAULT = 65_536
# The most glibc allows. Setting any of these freezes the threshold, at 128 KB if not said: then
# every activation is mapped, and a step takes 6 s instead of 2.5.
MAPPED_FROM_BYTES = 32 * 2**20
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
KERNEL_CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again_on_huge_pages() -> None:
    """Replace this process by itself with glibc asking for huge pages, which it reads at start.

    Returns where that is done already, the kernel has none to give, or the user chose otherwise.
    """
    if TUNABLES in os.environ or not KERNEL_CHOICE.is_file():
        return
    if "[never]" in KERNEL_CHOICE.read_text(encoding="ascii"):
        return
    os.environ[TUNABLES] = HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 our own command


def keep_freed_memory(one_heap: bool = False) -> None:
    """Ask glibc for one arena that is never trimmed. A no-op elsewhere.

    `one_heap`: big buffers live in it too. Right for generation, whose buffers grow together
    (451 against 228 tok/s); in training they would make it grow without end.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    results = [
        mallopt(M_ARENA_MAX, 1),
        mallopt(M_TRIM_THRESHOLD, -1),
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
        mallopt(M_MMAP_MAX, 0 if one_heap else MAPS_BY_DEFAULT),
    ]
    if not all(results):
        logging.getLogger("retort").warning("mallopt refused: %s", results)


def give_back_memory() -> None:
    """Hand what a finished model or training held to the kernel, before the next one needs it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # A teacher that comes next wants a share of the whole GPU, and counts what torch keeps.
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
