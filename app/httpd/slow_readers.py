"""Caps the answer bytes that slow readers leave in the memory of one worker.

A peer may read its answers as slowly as READ_RATE. A few hundred peers that do so with the largest answers would fill
the memory. Above ANSWERS_SIZE the slowest reader is disconnected, so the sum stays bounded and no other
client waits. Slowest means: the largest bytes_left / read_rate.

Invariants: `size` is never less than what the readers have left. Above twice ANSWERS_SIZE (`is_full`) requests are
answered one after the other (`app.httpd.fair_queue`) instead of all in one turn of the loop, so that at most one turn's
answers are added before the slowest readers are disconnected.

Rejected: two simpler rules. See docs/design/flow-control.md.

Perf: the buffers are measured only when the sum of their initial sizes exceeds ANSWERS_SIZE, which means an attack. A
reader has more than WRITE_BUFFER_SIZE (64 kB) when it is added, and above 64 MiB (`is_full`) hardly any is added, so at
most 64 MiB / 64 kB = 1,024 are measured, in 0.3 ms.
"""

from collections.abc import Callable
from logging import Logger
from typing import TYPE_CHECKING, Final, Protocol

from app.httpd.write_buffer import Reading
from core.limits import ANSWERS_SIZE, WRITE_BUFFER_SIZE, Limit

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# Answers are written faster than the fastest peer can read, a hundred in one turn of the loop. So readers get this long
# to read before the slowest one is chosen.
CHECK_DELAY_SECONDS: Final = 0.05
LOG_INTERVAL_SECONDS: Final = 1.0
_FULL_SIZE: Final = 2 * ANSWERS_SIZE.value


class ReadingConnection(Protocol):
    """What the cap needs of a connection (`app.httpd.connection.Connection`)."""

    @property
    def pending_size(self) -> int:
        """Bytes that were written and that the kernel has not accepted yet."""

    def abort_reading(self, limit: Limit, what: str) -> object:
        """Close the connection at once, report the limit, and log how the peer was reading."""


class SlowReader:
    """One slow reader: its unread bytes when it was added, and when they were last measured."""

    __slots__ = ("added_at", "bytes_at_start", "bytes_left", "is_disconnected")

    def __init__(self, size: int, now: float) -> None:
        self.bytes_at_start = self.bytes_left = size
        self.added_at = now
        self.is_disconnected = False

    def seconds_needed(self, now: float) -> float:
        """Return how long the reader would need for the rest at the rate at which it has been reading.

        One write buffer's size counts as read. A reader that has only just been added has read nothing yet, and the
        kernel accepts some bytes even for a peer that reads nothing.
        """
        bytes_read = self.bytes_at_start - self.bytes_left
        return self.bytes_left * (now - self.added_at) / (bytes_read + WRITE_BUFFER_SIZE.value)


class SlowReaders:
    """The slow readers of one worker."""

    def __init__(self, loop: "AbstractEventLoop", now: Callable[[], float], log: Logger) -> None:
        """`now` returns seconds on the worker's clock (`WorkerState.now`)."""
        self.size = 0  # bytes left by all readers when they were last measured
        self.is_full = False
        self._loop = loop
        self._now = now
        self._readers: dict[ReadingConnection, SlowReader] = {}
        self._is_check_scheduled = False
        self._log = log
        self._logged_at = -LOG_INTERVAL_SECONDS
        self._suppressed_count = 0  # disconnected since the last line, without one of their own

    def log_disconnected(self, address: str, reading: Reading, limit: Limit) -> None:
        """Log how a peer was reading that is disconnected for it: one line a second, with the number of the others."""
        now = self._now()
        if now - self._logged_at < LOG_INTERVAL_SECONDS:
            self._suppressed_count += 1
            return
        others = f" ({self._suppressed_count} more since the last such line)" if self._suppressed_count else ""
        self._logged_at, self._suppressed_count = now, 0
        self._log.info(
            "A client read its answers too slowly and was disconnected: %d bytes read, %d left, %.0f bytes a second "
            "over %.0f s%s",
            reading.bytes_read, reading.bytes_left, reading.rate, reading.seconds, others,
            extra={"code": limit.code, "address": address},
        )  # fmt: skip

    def add(self, connection: ReadingConnection) -> None:
        """Count the pending bytes of `connection` from now on, because its write buffer is over the limit."""
        self.remove(connection)
        self._readers[connection] = SlowReader(connection.pending_size, self._now())
        self._change_size(connection.pending_size)
        if self.size > ANSWERS_SIZE.value and not self._is_check_scheduled:
            self._is_check_scheduled = True
            self._loop.call_later(CHECK_DELAY_SECONDS, self._disconnect_slowest)

    def remove(self, connection: ReadingConnection) -> None:
        """Stop counting `connection`, because its write buffer is below the limit again or it has ended."""
        reader = self._readers.pop(connection, None)
        if reader is not None:
            self._change_size(-reader.bytes_left)

    def _change_size(self, size: int) -> None:
        self.size += size
        self.is_full = self.size > _FULL_SIZE

    def _disconnect_slowest(self) -> None:
        """Measure all readers, then disconnect the slowest until the rest is within ANSWERS_SIZE."""
        self._is_check_scheduled = False
        now = self._now()
        for connection, reader in self._readers.items():
            self._change_size(connection.pending_size - reader.bytes_left)
            reader.bytes_left = connection.pending_size
        remaining = [item for item in self._readers.items() if not item[1].is_disconnected]
        # Of several that would need equally long, the one with the most bytes left counts as the slowest.
        remaining.sort(key=lambda item: (item[1].seconds_needed(now), item[1].bytes_left))
        size = sum(reader.bytes_left for _, reader in remaining)
        while size > ANSWERS_SIZE.value:
            connection, reader = remaining.pop()
            size -= reader.bytes_left
            reader.is_disconnected = True  # its memory is freed in the loop's next turn, in `connection_lost`
            connection.abort_reading(
                ANSWERS_SIZE, "Unread answers exceed the worker's limit; the slowest reader is disconnected"
            )
