"""The C library's allocator, told to keep the buffers of several megabytes that batches are made of."""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8
_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
"""Names of parameters for mallopt(3)."""

LARGEST_KEPT_BYTES = 32 * 1024 * 1024
"""mallopt(3) takes no larger threshold."""


def reuse_freed_memory(kept_bytes: int) -> None:
    """Have the C library keep up to ``kept_bytes`` of freed memory for the next buffers, in one arena.

    Each arena keeps its own, so that several hold more than is ever in use at once, and more the longer they run. By
    default each buffer of some MB is mapped, faulted in page by page and unmapped again, which costs more than to
    fill it. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, kept_bytes)
