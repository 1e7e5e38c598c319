"""Keeps the heap small: returns freed memory to the kernel once a second (malloc_trim(3)), and shares one heap.

A batch of a thousand events is a body of 1.5 MB and thousands of objects, all freed a few milliseconds later. glibc
keeps that memory in every worker: it raises its mmap threshold to the largest block that was ever freed, keeps up to
twice that size at the end of the heap, and never returns free memory from the middle. That is 4 to 8 MB per worker that
nothing uses after such requests.

glibc also gives each of the first threads a heap of its own, so that threads which allocate at the same time do not
wait for each other. Python's threads take turns anyway, so all threads share one heap (`share_one_heap`).

Rejected: permanently lower thresholds (mallopt(3)). Each large body would be mapped, faulted in and unmapped again, and
free memory in the middle of the heap would stay.
"""

import ctypes
from collections.abc import Callable
from typing import Final

TRIM_INTERVAL_SECONDS: Final = 1.0
_M_ARENA_MAX: Final = -8  # malloc.h


def share_one_heap() -> None:
    """Have all threads of this process allocate from the main heap; call it before the first one starts.

    Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


class HeapTrim:
    """Trims the heap of one worker. Does nothing where the C library has no malloc_trim."""

    def __init__(self, trim: Callable[[int], object] | None = None) -> None:
        """`trim(pad)` returns free memory to the kernel, except for `pad` bytes at the end of the heap."""
        self._trim = trim or getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._due = 0.0

    def trim_if_due(self, now: float) -> None:
        """Trim the heap, unless that was done less than TRIM_INTERVAL_SECONDS ago. `now` is in seconds, monotonic."""
        if self._trim is not None and now >= self._due:
            self._due = now + TRIM_INTERVAL_SECONDS
            self._trim(0)
