"""The backlog: what one peer has sent ahead of its answers.

Requests in their order, and behind them bytes that are not parsed yet. Both are accounted for in the budget of the
worker, because a client that pipelines decides how much it is. llhttp cannot be stopped inside a buffer, so a large
read is parsed in slices: at most SLICE_SIZE / 26 = 78 of the smallest requests join a backlog that is full.

A list and not a deque: an empty deque is 760 bytes for each idle connection; taking the first of a few hundred out of a
list is 0.1 µs.
"""

from typing import Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.byte_budget import ByteBudget
from app.httpd.framing import Refusal
from core.limits import PIPELINE_DEPTH

SLICE_SIZE: Final = 2_048  # bytes in one feed of the parser, where requests may begin
_ENVIRON_SIZE: Final = 2_048  # bytes of a request that waits, without its body: a dictionary of 25 and its strings
_NOTHING: Final = memoryview(b"")


class Waiting(NamedTuple):
    """A request that waits for its turn, and what it is accounted for with, in bytes."""

    environ: WSGIEnvironment
    persistence: str
    size: int


class Pipeline:
    """What waits on one connection."""

    __slots__ = ("_budget", "_items", "_kept", "unparsed")

    def __init__(self, budget: ByteBudget) -> None:
        self.unparsed = _NOTHING
        self._budget = budget
        self._items: list[Waiting | bytes] = []  # bytes are the answer that ends the connection
        self._kept = 0  # bytes of the unparsed that are accounted for, until all are parsed

    def __bool__(self) -> bool:
        return bool(self._items or self.unparsed)

    def __len__(self) -> int:
        """Requests that wait, parsed."""
        return len(self._items)

    @property
    def is_full(self) -> bool:
        return len(self._items) >= PIPELINE_DEPTH.value

    def append(self, environ: WSGIEnvironment, persistence: str) -> None:
        """Let a request wait. Raises Refusal when the budget is used up."""
        size = _ENVIRON_SIZE + int(environ.get("CONTENT_LENGTH") or 0)
        self._budget.reserve(size)
        self._items.append(Waiting(environ, persistence, size))

    def end_with(self, last: tuple[WSGIEnvironment, str] | bytes) -> None:
        """Let the last answer wait, or the request that it is for; not accounted for, because there is but one."""
        self._items.append(last if isinstance(last, bytes) else Waiting(*last, 0))

    def pop(self) -> Waiting | bytes:
        """Take what has waited longest."""
        item = self._items.pop(0)
        if isinstance(item, Waiting):
            self._budget.release(item.size)
        return item

    def read(self, data: bytes) -> None:
        """Add bytes to those that are not parsed. `account` has to follow."""
        self.unparsed = memoryview(bytes(self.unparsed) + data if self.unparsed else data)

    def account(self) -> None:
        """Account for what is not parsed. Raises Refusal, and forgets it, when the budget is used up."""
        size = max(self._kept, len(self.unparsed))
        try:
            self._budget.reserve(size - self._kept)
        except Refusal:
            self.forget_unparsed()
            raise
        self._kept = size

    def take_slice(self, body_left: int) -> memoryview:
        """Take what the parser is to be fed next, of a message of whose body at least `body_left` bytes are to come."""
        size = max(SLICE_SIZE, body_left)
        data, self.unparsed = self.unparsed[:size], self.unparsed[size:]
        return data

    def forget_unparsed(self) -> None:
        """All is parsed, or nothing more will be."""
        self.unparsed = _NOTHING
        self._budget.release(self._kept)
        self._kept = 0

    def clear(self) -> list[WSGIEnvironment]:
        """Let go of everything; returns the environs of the requests that waited."""
        waiting = [item for item in self._items if isinstance(item, Waiting)]
        self._budget.release(sum(item.size for item in waiting))
        self._items.clear()
        self.forget_unparsed()
        return [item.environ for item in waiting]
