"""Pieces: the line of connections whose answers take long to make.

Such an answer is made a piece in each turn of the loop, of no more than a quarter of a millisecond, and sent when it is
whole. First come, first served, so that one answer at a time is half made; slowly while others wait, because a thousand
of them are an attack, and what is asked for beside them must not wait for a thousand answers; and not at all while
readers leave too many bytes of such answers untaken.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from core.limits import ANSWERS_SIZE

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.connection import Connection

# Between two pieces while several answers are under way: with pieces of 0.25 ms, a fifth of the loop's time.
PIECE_SECONDS: Final = 0.001


class Pieces:
    """The line of one worker."""

    def __init__(self, loop: "AbstractEventLoop") -> None:
        self.untaken_size = 0  # bytes of answers in the write buffers of slow readers
        self._loop = loop
        self._line: OrderedDict[Connection, None] = OrderedDict()  # the first one's answer is under way
        self._untaken: dict[Connection, int] = {}
        self._due = False

    def __len__(self) -> int:
        return len(self._line)

    def line_up(self, connection: "Connection") -> None:
        """Have `connection` make a long answer (`Connection.make_piece`)."""
        self._line[connection] = None
        self._schedule()

    def forget(self, connection: "Connection") -> None:
        """Have nothing more made for a connection that has ended."""
        self._line.pop(connection, None)
        self.leaves(connection, 0)

    def leaves(self, connection: "Connection", size: int) -> None:
        """Account for `size` bytes that wait, from now on, for a reader who is slow to take them; 0 when none do."""
        before = self.untaken_size
        self.untaken_size += size - self._untaken.pop(connection, 0)
        if size:
            self._untaken[connection] = size
        if before <= ANSWERS_SIZE.value < self.untaken_size:
            connection.passed(ANSWERS_SIZE, "Readers leave too much of their answers, and long ones wait")
        self._schedule()

    def _schedule(self) -> None:
        if self._due or not self._line or self.untaken_size > ANSWERS_SIZE.value:
            return
        self._due = True
        if len(self._line) == 1:
            self._loop.call_soon(self._make)
        else:
            self._loop.call_later(PIECE_SECONDS, self._make)

    def _make(self) -> None:
        self._due = False
        try:
            if self._line:
                connection = next(iter(self._line))
                answer = connection.make_piece()
                if answer is not None:
                    del self._line[connection]
                    connection.answered(answer)
        finally:
            self._schedule()
