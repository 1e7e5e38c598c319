"""The deadline sweep: every connection looks at its deadlines, a few times a second.

PERF: a look is 0.5 µs, 50 to 100 for a connection that is ended. In one go 5,000 of them would hold every request up
for 2.5 ms and more, four times a second; so a few have their turn, then whatever came in meanwhile.

A round also finds who is idle, so that a full worker knows at once whose connection makes room for a new one.
Rejected: a timer per request (two heap operations and a callback for something that all but never fires).
"""

from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.httpd.connection import Connection

CHECKS_PER_TURN: Final = 64  # connections that look at their deadlines in one turn of the loop
CLOSES_PER_TURN: Final = 4  # or that are ended
_idle_until: Final = attrgetter("idle_until")


class DeadlineSweep:
    """The rounds of one worker over its `connections`."""

    def __init__(self, loop: "AbstractEventLoop", connections: set["Connection"]) -> None:
        self._loop = loop
        self._connections = connections
        self._unchecked: list[Connection] = []  # of the round that is under way
        self._idle_found: list[Connection] = []  # idle, in the round that is under way
        self._idle: list[Connection] = []  # in the last one that ended
        self._idle_sorted = True  # the longest last

    def start_sweep(self) -> None:
        """Begin a round, unless the last one is still under way."""
        if not self._unchecked:
            self._unchecked = list(self._connections)
            self._idle_found = []
            self._check_batch()

    def add_idle(self, connection: "Connection") -> None:
        """Called by a connection on which nothing is under way."""
        self._idle_found.append(connection)

    def close_longest_idle(self) -> bool:
        """Close the connection that has been idle longest; False when none has been idle for long enough.

        The candidates are those of the last round, sorted when the first of them is needed, so that a new connection
        costs the removal of one from a list.
        """
        if not self._idle_sorted:
            self._idle.sort(key=_idle_until, reverse=True)
            self._idle_sorted = True
        while self._idle:
            if self._idle.pop().make_room():
                return True
        return False

    def _check_batch(self) -> None:
        left = CHECKS_PER_TURN
        try:
            while self._unchecked and left > 0:
                connection = self._unchecked.pop()
                if connection in self._connections:
                    left -= CHECKS_PER_TURN // CLOSES_PER_TURN if connection.sweep() else 1
        finally:  # one that fails must not keep the others from ending
            if self._unchecked:
                self._loop.call_soon(self._check_batch)
            else:
                self._idle, self._idle_sorted = self._idle_found, False
