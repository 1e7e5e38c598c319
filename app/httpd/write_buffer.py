"""The answers on their way to one peer, and the deadline by which the peer has to read them.

Above WRITE_BUFFER_SIZE unsent bytes (`is_paused`) the connection answers no further request. A peer has WRITE_SECONDS,
and time for each byte that it reads, at READ_RATE bytes a second. So a steady reader on a slow line gets any answer as
a whole, and a peer that reads a byte a second is disconnected like one that reads nothing. What it has earned is
bounded by STALL_SECONDS: a peer that has read fast may not stop for longer.

Bytes count as sent when the kernel has accepted them, even on TLS, where they are encrypted earlier (`app.httpd.tls`).
The kernel accepts them in bursts, as windows open: 64 kB, which are 16 seconds of the slowest reader, may be one.
How this works together with the other limits: docs/design/flow-control.md.
"""

import asyncio
from typing import Final, NamedTuple

from app.httpd.tls import limit_socket_buffer
from core.limits import READ_RATE, WRITE_BUFFER_SIZE, WRITE_SECONDS, Limit

STALL_SECONDS: Final = 30.0  # the longest time without progress, whatever a peer has earned


class Reading(NamedTuple):
    """How a peer reads its answers."""

    bytes_read: int  # that the kernel has accepted, since there was first something to wait for
    bytes_left: int
    seconds: float  # since then

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes_read / self.seconds if self.seconds else 0.0


class WriteBuffer:
    """The output side of one connection."""

    __slots__ = (
        "_began_at", "_began_size", "_deadline", "_is_reported", "_sent_size", "_socket_transport", "_transport",
        "_written_size", "is_paused",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_paused = False  # set by the connection when the transport pauses and resumes writing
        self._transport = transport
        self._socket_transport = limit_socket_buffer(transport, WRITE_BUFFER_SIZE.value)
        self._written_size = 0  # bytes of all answers so far
        self._sent_size = 0  # of these, the bytes that were sent by the last check
        self._deadline = 0.0  # 0 when nothing waited at the last check
        self._began_at = 0.0  # when something was first found waiting; `_began_size` is what was sent by then
        self._began_size = 0
        self._is_reported = False  # whether a check has reported that the peer is too slow since then

    def write(self, answer: bytes) -> None:
        """Send an answer. What the kernel does not accept now waits in the transport."""
        self._written_size += len(answer)
        self._transport.write(answer)

    @property
    def pending_size(self) -> int:
        """Bytes that were written and that the kernel has not accepted yet."""
        pending_size = self._transport.get_write_buffer_size()
        if self._socket_transport is not self._transport:
            pending_size += self._socket_transport.get_write_buffer_size()
        return pending_size

    def reading(self, now: float) -> Reading:
        """Return how the peer has been reading since it began to be waited for, for log lines."""
        pending_size = self.pending_size
        bytes_read = max(0, self._written_size - pending_size - self._began_size)
        return Reading(bytes_read, pending_size, now - self._began_at)

    def check_deadline(self, now: float) -> Limit | None:
        """Return the limit that the peer has exceeded since the last check, or None.

        WRITE_SECONDS: the deadline is over, and the connection has to be closed. WRITE_BUFFER_SIZE: the peer has just
        become too slow; only worth reporting. `now` is in seconds on the worker's clock (`WorkerState.now`).
        """
        pending_size = self.pending_size
        if not pending_size:
            self._deadline, self._is_reported = 0.0, False
            return None
        # On TLS `pending_size` also counts the framing of TLS records, so this may be a little low.
        sent_size = self._written_size - pending_size
        if not self._deadline:
            self._deadline = now + WRITE_SECONDS.value
            self._began_at = now
            self._began_size = self._sent_size = sent_size
        elif sent_size > self._sent_size:
            earned = (sent_size - self._sent_size) / READ_RATE.value
            self._deadline = min(self._deadline + earned, now + STALL_SECONDS)
            self._sent_size = sent_size
        if now > self._deadline:
            return WRITE_SECONDS
        if self.is_paused and not self._is_reported:
            self._is_reported = True
            return WRITE_BUFFER_SIZE
        return None
