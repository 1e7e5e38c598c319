"""Long answers: the line of connections whose answers take long to make.

Such an answer is made in pieces of no more than a quarter of a millisecond, one in each turn of the loop, and sent when
it is whole. First come, first served, so that one answer at a time is half made; slowly while others wait, because a
thousand of them are an attack, and what is asked for beside them must not wait for a thousand answers. Where a turn of
the loop takes long, because a thousand others have something to do in each, there are more pieces in it: as long as
that is short, they have a fifth of the time that is worked.

Who stands in line has been let in and has something to come: a refusal is short, and is answered at once.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.httpd.connection import Connection

# Between two turns while several answers are under way: with pieces of 0.25 ms, a fifth of the loop's time.
PIECE_SECONDS: Final = 0.001
# And of a turn that took longer: so many pieces in each second of others' work, but at once no more than 1 ms of them.
# PERF: beside 900 busy connections a page of the log took 1.4 s with one piece in each turn of 60 ms.
PIECES_PER_SECOND: Final = 800
PIECES_COUNT_MAX: Final = 4


class LongAnswerQueue:
    """The line of one worker."""

    def __init__(self, loop: "AbstractEventLoop", worked: Callable[[], float] = time.thread_time) -> None:
        """`worked()` says how long the thread of the loop has worked, in seconds; waiting does not count."""
        self._loop = loop
        self._worked = worked
        self._line: OrderedDict[Connection, None] = OrderedDict()  # the first one's answer is under way
        self._due = False
        self._since = 0.0  # what was worked before the turn of the loop that ends with the next pieces

    def __len__(self) -> int:
        return len(self._line)

    def line_up(self, connection: "Connection") -> None:
        """Have the rest made of a long answer that `connection` has begun (`Connection.make_piece`)."""
        self._line[connection] = None
        self._schedule()

    def forget(self, connection: "Connection") -> bool:
        """Have nothing more made for a connection that has ended. Returns whether something would have been."""
        waited = connection in self._line
        if waited:
            del self._line[connection]
        return waited

    def _schedule(self) -> None:
        if self._due or not self._line:
            return
        self._due = True
        self._since = self._worked()
        if len(self._line) == 1:
            self._loop.call_soon(self._make)
        else:
            self._loop.call_later(PIECE_SECONDS, self._make)

    def _make(self) -> None:
        self._due = False
        left = min(PIECES_COUNT_MAX, 1 + int(PIECES_PER_SECOND * (self._worked() - self._since)))
        try:
            while self._line and left:
                left -= 1
                connection = next(iter(self._line))
                answer = connection.make_piece()
                if answer is not None:
                    del self._line[connection]
                    connection.answered(answer)
        finally:
            self._schedule()
