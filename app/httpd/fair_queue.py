"""Round-robin queue of the connections whose requests wait for their turn.

A client may send many requests before it reads an answer (pipelining). Its connection then does one step at a time: it
answers one request or parses one slice of input, and goes to the end of this queue. In each turn of the loop the queue
runs TURN_COUNT steps or as many as fit into TURN_SECONDS; then the loop polls its sockets again. So a client that sends
one request at a time waits about a millisecond for other clients' pipelines, however long these are.

How this works together with the other limits: docs/design/flow-control.md.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# In one turn of the loop, whichever is reached first. A step is never interrupted, so the last one may take longer.
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
