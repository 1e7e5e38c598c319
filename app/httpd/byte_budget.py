"""A limit on the bytes of one kind that a worker holds for all its clients together.

A limit per connection does not limit their sum: a thousand connections with sixteen megabytes each exceed the memory of
a container. What is reserved, and when it is released: docs/design/flow-control.md.

Threading: the loop's thread only, so nothing is locked.
"""

from app.httpd.refusal import Refusal
from core.limits import Limit


class ByteBudget:
    """Counts the bytes held now against one limit."""

    __slots__ = ("_description", "_limit", "size")

    def __init__(self, limit: Limit, description: str) -> None:
        """`description` ends the refusal's sentence: what the bytes are, and what the client can do instead."""
        self.size = 0  # bytes held now
        self._limit = limit
        self._description = description

    def reserve(self, size: int) -> None:
        """Add `size` bytes. Raises Refusal (503), and adds nothing, when the sum would exceed the limit."""
        if self.size + size > self._limit.value:
            detail = f"This worker already holds {self.size} bytes of {self._description}."
            raise Refusal(self._limit.status, self._limit.code, detail, retry_after=1)
        self.size += size

    def release(self, size: int) -> None:
        """Subtract `size` bytes that were reserved before."""
        self.size -= size
