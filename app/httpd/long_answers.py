"""Scheduler for answers that are generated in pieces.

A page of the log takes 4.5 ms to generate, and the loop serves no other client meanwhile. Such an answer is generated
in pieces of at most a quarter of a millisecond, normally one in each turn of the loop, and sent when it is complete.

Answers are generated first come, first served, so that only one is incomplete at a time. While several wait, the pieces
are spread out: a thousand long answers are an attack, and other requests must not wait for them. When the loop's turns
are long because many clients are busy, more pieces run in each turn, so that long answers get about a fifth of the
CPU time. A refused request is not queued: its answer is short and is sent at once.

How this works together with the other limits: docs/design/flow-control.md.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# Pause between two turns while several answers wait: with pieces of 0.25 ms, they get a fifth of the loop's time.
PIECE_INTERVAL_SECONDS: Final = 0.001
# Pieces per second of CPU time that the loop's thread used for other work since the last turn, in addition to the first
# piece. At most PIECES_PER_TURN_MAX run in one turn, which is 1 ms.
# PERF: with 900 busy connections a page of the log took 1.4 s with one piece in each turn of 60 ms.
PIECES_PER_SECOND: Final = 800
PIECES_PER_TURN_MAX: Final = 4


class AnsweringConnection(Protocol):
    """What the queue needs of a connection (`app.httpd.connection.Connection`)."""

    def make_piece(self) -> bytes | None:
        """Generate the next piece. Returns the answer when that was the last."""

    def finish_request(self, answer: bytes) -> None:
        """Send the complete answer."""


class LongAnswerQueue:
    """The queue of one worker."""

    def __init__(self, loop: "AbstractEventLoop", cpu_seconds: Callable[[], float] = time.thread_time) -> None:
        """`cpu_seconds` returns the CPU time that the loop's thread has used; time spent waiting does not count."""
        self._loop = loop
        self._cpu_seconds = cpu_seconds
        # The answer of the first key is being generated.
        self._queue: OrderedDict[AnsweringConnection, None] = OrderedDict()
        self._is_scheduled = False
        self._cpu_seconds_before = 0.0  # when the next turn was scheduled

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, connection: AnsweringConnection) -> None:
        """Call `make_piece` in the turns to come until the answer of `connection` is complete."""
        self._queue[connection] = None
        self._schedule()

    def remove(self, connection: AnsweringConnection) -> bool:
        """Generate nothing more for a connection that has ended. Returns whether it was queued."""
        was_queued = connection in self._queue
        if was_queued:
            del self._queue[connection]
        return was_queued

    def _schedule(self) -> None:
        if self._is_scheduled or not self._queue:
            return
        self._is_scheduled = True
        self._cpu_seconds_before = self._cpu_seconds()
        if len(self._queue) == 1:
            self._loop.call_soon(self._run_turn)
        else:
            self._loop.call_later(PIECE_INTERVAL_SECONDS, self._run_turn)

    def _run_turn(self) -> None:
        self._is_scheduled = False
        used = self._cpu_seconds() - self._cpu_seconds_before
        pieces_left = min(PIECES_PER_TURN_MAX, 1 + int(PIECES_PER_SECOND * used))
        try:
            while self._queue and pieces_left:
                pieces_left -= 1
                connection = next(iter(self._queue))
                answer = connection.make_piece()
                if answer is not None:
                    del self._queue[connection]
                    connection.finish_request(answer)
        finally:  # a piece that raises must not stop the queue
            self._schedule()
