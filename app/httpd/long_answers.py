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
PIECE_INTERVAL_SECONDS: Final = 0.001
# And of a turn that took longer: so many pieces in each second of others' work, but at once no more than 1 ms of them.
# PERF: beside 900 busy connections a page of the log took 1.4 s with one piece in each turn of 60 ms.
PIECES_PER_SECOND: Final = 800
PIECES_PER_TURN_MAX: Final = 4


class LongAnswerQueue:
    """The line of one worker."""

    def __init__(self, loop: "AbstractEventLoop", worked: Callable[[], float] = time.thread_time) -> None:
        """`worked()` says how long the thread of the loop has worked, in seconds; waiting does not count."""
        self._loop = loop
        self._worked = worked
        self._queue: OrderedDict[Connection, None] = OrderedDict()  # the first one's answer is under way
        self._is_scheduled = False
        self._worked_before = 0.0  # what was worked before the turn of the loop that ends with the next pieces

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, connection: "Connection") -> None:
        """Have the rest made of a long answer that `connection` has begun (`Connection.make_piece`)."""
        self._queue[connection] = None
        self._schedule()

    def remove(self, connection: "Connection") -> bool:
        """Have nothing more made for a connection that has ended. Returns whether something would have been."""
        waited = connection in self._queue
        if waited:
            del self._queue[connection]
        return waited

    def _schedule(self) -> None:
        if self._is_scheduled or not self._queue:
            return
        self._is_scheduled = True
        self._worked_before = self._worked()
        if len(self._queue) == 1:
            self._loop.call_soon(self._run_turn)
        else:
            self._loop.call_later(PIECE_INTERVAL_SECONDS, self._run_turn)

    def _run_turn(self) -> None:
        self._is_scheduled = False
        left = min(PIECES_PER_TURN_MAX, 1 + int(PIECES_PER_SECOND * (self._worked() - self._worked_before)))
        try:
            while self._queue and left:
                left -= 1
                connection = next(iter(self._queue))
                answer = connection.make_piece()
                if answer is not None:
                    del self._queue[connection]
                    connection.answered(answer)
        finally:
            self._schedule()
