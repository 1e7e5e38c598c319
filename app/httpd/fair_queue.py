"""The fair queue: the line of connections that have something to do.

What a connection has sent ahead of its answers stands in one line with what all the others have: each does one thing
(an answer, or the parsing of a small slice) and goes to the end of the line, for TURN_SECONDS or TURN_COUNT things in a
turn of the loop; then the loop looks at its sockets again. So whoever sends one request at a time waits for a
millisecond of other people's pipelines, not for all of them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.httpd.connection import Connection

# Of pipelines in one turn of the loop, whichever is reached first; the last thing begun is finished.
TURN_SECONDS: Final = 0.001
TURN_COUNT: Final = 16


class FairQueue:
    """The line of one worker."""

    def __init__(self, loop: "AbstractEventLoop", clock: Callable[[], float]) -> None:
        """`clock` in seconds, monotonic."""
        # While somebody stands in line, who comes with several requests at once joins it before any is parsed.
        self.is_busy = False
        self._loop = loop
        self._clock = clock
        # The next one first. A dict cannot be emptied from its front in O(1).
        self._queue: OrderedDict[Connection, None] = OrderedDict()

    def add(self, connection: "Connection") -> None:
        """Let `connection` have its turns (`Connection.turn`) until it says that nothing is left to do."""
        self._queue[connection] = None
        if not self.is_busy:
            self.is_busy = True
            self._loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        line, left, end = self._queue, TURN_COUNT, self._clock() + TURN_SECONDS
        try:
            while line and left:
                connection, _ = line.popitem(last=False)
                if connection.turn():
                    line[connection] = None
                left = left - 1 if self._clock() < end else 0
        finally:
            self.is_busy = bool(line)
            if line:
                self._loop.call_soon(self._run_turn)
