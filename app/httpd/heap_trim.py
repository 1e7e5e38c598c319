"""The heap: what the C library keeps of memory that was freed, given back to the kernel.

A batch of a thousand events is a body of 1.5 MB and thousands of objects, all gone a few milliseconds later. glibc
keeps what they took, in every worker: it raises its threshold for asking the kernel to the largest block that was
ever freed, keeps what is free at the end of the heap up to twice of that, and never gives back what is free in the
middle. That is 4 to 8 MB in each worker that nobody uses once such requests are over, and the service has promised to
be small. So the beat asks glibc once a second to give back what is free.

Rejected: lower thresholds for good (mallopt(3)). Each large body would be mapped, faulted in and unmapped again, and
what is free in the middle would stay all the same.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Final

TRIM_INTERVAL_SECONDS: Final = 1.0


class HeapTrim:
    """One worker's. `trim` gives back what is free, but for so many bytes at the end: malloc_trim(3) of glibc."""

    def __init__(self, trim: Callable[[int], Any] | None = None) -> None:
        self._trim = trim or getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._due = 0.0

    def trim_if_due(self, now: float) -> None:
        """Give back what is free, once in `TRIM_INTERVAL_SECONDS`. With another C library nothing happens."""
        if self._trim is not None and now >= self._due:
            self._due = now + TRIM_INTERVAL_SECONDS
            self._trim(0)
