"""Round-robin queue of the connections whose requests wait for their turn, and the bound on a turn of the loop.

A client may send many requests before it reads an answer (pipelining). Its connection then does one step at a time: it
answers one request or parses one slice of input, and goes to the end of this queue. In each turn of the loop the queue
runs TURN_COUNT steps or as many as fit into TURN_SECONDS; then the loop polls its sockets again. So a client that sends
one request at a time waits about a millisecond for other clients' pipelines, however long these are.

Many clients may each send one request that takes long on the loop (IN_TURN). These are answered at once for
TURN_SECONDS in a turn of the loop; the others join this queue. A light request (INLINE) does not wait for them.

How this works together with the other limits: docs/design/flow-control.md.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# In one turn of the loop, whichever is reached first. A step is never interrupted, so the last one may take longer.
# TURN_SECONDS also bounds the requests IN_TURN that are answered in the turn in which they arrive.
TURN_SECONDS: Final = 0.001
TURN_COUNT: Final = 16


class QueuedConnection(Protocol):
    """What the queue needs of a connection (`app.httpd.connection.Connection`)."""

    def run_step(self) -> bool:
        """Give one answer or parse one slice. Returns False when nothing is left to do."""


class FairQueue:
    """The queue of one worker."""

    def __init__(self, loop: "AbstractEventLoop", clock: Callable[[], float]) -> None:
        """`clock` returns seconds and is monotonic."""
        # True while a connection waits. Several requests that arrive in one read are then queued before they are
        # parsed.
        self.is_busy = False
        self._loop = loop
        self._clock = clock
        # The first key runs next. An OrderedDict, because removing the first key of a dict is not O(1).
        self._queue: OrderedDict[QueuedConnection, None] = OrderedDict()
        # Until when requests IN_TURN are answered at once in this turn of the loop; None before the first one.
        self._at_once_end: float | None = None

    def admits_at_once(self) -> bool:
        """Return whether a request IN_TURN that has just arrived is answered at once; otherwise it must be queued.

        It is while no connection waits, and for TURN_SECONDS from the first such request in this turn of the loop.
        """
        if self.is_busy:
            return False
        if self._at_once_end is None:
            self._at_once_end = self._clock() + TURN_SECONDS
            self._loop.call_soon(self._end_turn)
            return True
        return self._clock() < self._at_once_end

    def _end_turn(self) -> None:
        self._at_once_end = None

    def add(self, connection: QueuedConnection) -> None:
        """Call `run_step` of `connection` in the turns to come, until it returns False."""
        self._queue[connection] = None
        if not self.is_busy:
            self.is_busy = True
            self._loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        queue, steps_left, end = self._queue, TURN_COUNT, self._clock() + TURN_SECONDS
        try:
            while queue and steps_left:
                connection, _ = queue.popitem(last=False)
                if connection.run_step():
                    queue[connection] = None
                steps_left = steps_left - 1 if self._clock() < end else 0
        finally:  # a step that raises must not stop the queue
            self.is_busy = bool(queue)
            if queue:
                self._loop.call_soon(self._run_turn)
