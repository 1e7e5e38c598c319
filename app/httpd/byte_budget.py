"""The budget: bytes of one kind that one worker holds for all its clients together, bounded.

A bound for each connection is none for their sum: a thousand connections with sixteen megabytes each are more than a
container has. Everything runs on the loop's thread, so nothing here is locked.
"""

from app.httpd.framing import Refusal
from core.limits import Limit


class ByteBudget:
    """Counts bytes against `limit`; `what` they are, and what a client may do instead, goes into its refusal."""

    __slots__ = ("_limit", "_what", "size")

    def __init__(self, limit: Limit, what: str) -> None:
        self.size = 0  # bytes held now
        self._limit = limit
        self._what = what

    def reserve(self, size: int) -> None:
        """Account for `size` bytes. Raises Refusal (503), and takes none, rather than let clients fill the memory
        together.
        """
        if self.size + size > self._limit.value:
            detail = f"This worker already holds {self.size} bytes of {self._what}."
            raise Refusal(self._limit.status, self._limit.code, detail, retry_after=1)
        self.size += size

    def release(self, size: int) -> None:
        """Give back what was taken."""
        self.size -= size
