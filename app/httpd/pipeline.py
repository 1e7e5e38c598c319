"""What one client has sent ahead of its answers: parsed requests, and behind them bytes that are not parsed yet.

A client decides how much it pipelines, so both count in one budget of the worker (`app.httpd.byte_budget`). llhttp
cannot be stopped inside a buffer: a large read is parsed in slices, so that at most SLICE_SIZE / 26 = 78 of the
smallest requests are added to a full pipeline.

Rejected: a deque. An empty one takes 760 bytes per idle connection; to remove the first of a few hundred from a list
takes 0.1 µs.
"""

from typing import Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.byte_budget import ByteBudget
from app.httpd.refusal import Refusal
from app.httpd.request import BODY_RESERVED
from core.limits import PIPELINE_DEPTH

SLICE_SIZE: Final = 2_048  # bytes in one feed of the parser, where requests may begin
_ENVIRON_SIZE: Final = 2_048  # bytes of a waiting request without its body: a dictionary of 25 entries and its strings
_NOTHING: Final = memoryview(b"")


class Waiting(NamedTuple):
    """A request that waits for its turn; `size` bytes of the budget are reserved for it."""

    environ: WSGIEnvironment
    persistence: str
    size: int


class Pipeline:
    """The pipeline of one connection. True while it holds anything."""

    __slots__ = ("_budget", "_items", "_reserved_size", "unparsed")

    def __init__(self, budget: ByteBudget) -> None:
        self.unparsed = _NOTHING
        self._budget = budget
        self._items: list[Waiting | bytes] = []  # bytes: the answer that ends the connection
        self._reserved_size = 0  # bytes reserved for `unparsed`, until all of it is parsed

    def __bool__(self) -> bool:
        return bool(self._items or self.unparsed)

    def __len__(self) -> int:
        """Return the number of parsed requests."""
        return len(self._items)

    @property
    def is_full(self) -> bool:
        return len(self._items) >= PIPELINE_DEPTH.value

    def append(self, environ: WSGIEnvironment, persistence: str) -> None:
        """Add a request. Raises Refusal when the budget is used up.

        The bytes of a large body are not counted again: they have a budget of their own (`app.httpd.body_admission`).
        """
        size = _ENVIRON_SIZE + int(environ.get("CONTENT_LENGTH") or 0) - environ.get(BODY_RESERVED, 0)
        self._budget.reserve(size)
        self._items.append(Waiting(environ, persistence, size))

    def end_with(self, last: tuple[WSGIEnvironment, str] | bytes) -> None:
        """Add the last answer, or the last request. Nothing is reserved for it, because there is only one."""
        self._items.append(last if isinstance(last, bytes) else Waiting(*last, 0))

    def pop(self) -> Waiting | bytes:
        """Remove and return what has waited longest: a request, or the answer that ends the connection."""
        item = self._items.pop(0)
        if isinstance(item, Waiting):
            self._budget.release(item.size)
        return item

    def add_bytes(self, data: bytes) -> None:
        """Add bytes to those that are not parsed. The caller parses some, then calls `reserve_unparsed`."""
        self.unparsed = memoryview(bytes(self.unparsed) + data if self.unparsed else data)

    def reserve_unparsed(self) -> None:
        """Reserve budget for the unparsed bytes. Raises Refusal, and drops the bytes, when the budget is used up."""
        size = max(self._reserved_size, len(self.unparsed))
        try:
            self._budget.reserve(size - self._reserved_size)
        except Refusal:
            self.drop_unparsed()
            raise
        self._reserved_size = size

    def next_slice(self, body_size_left: int) -> memoryview:
        """Remove and return what the parser is fed next. `body_size_left` bytes of its current body are missing."""
        size = max(SLICE_SIZE, body_size_left)
        data, self.unparsed = self.unparsed[:size], self.unparsed[size:]
        return data

    def drop_unparsed(self) -> None:
        """Drop the unparsed bytes: all are parsed, or none will be."""
        self.unparsed = _NOTHING
        self._budget.release(self._reserved_size)
        self._reserved_size = 0

    def clear(self) -> list[WSGIEnvironment]:
        """Drop everything. Returns the environs of the requests that waited."""
        waiting = [item for item in self._items if isinstance(item, Waiting)]
        self._budget.release(sum(item.size for item in waiting))
        self._items.clear()
        self.drop_unparsed()
        return [item.environ for item in waiting]
