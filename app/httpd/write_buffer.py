"""The answers on their way to one peer, and the deadline by which the peer has to read them.

Above WRITE_BUFFER_SIZE unsent bytes (`is_paused`) the connection answers no further request. What was written by the
time of one check must be sent within WRITE_SECONDS. That deadline is absolute: a peer that reads one byte a second is
disconnected like one that reads nothing.

Bytes count as sent when the kernel has accepted them, even on TLS, where they are encrypted earlier (`app.httpd.tls`).
How this works together with the other limits: docs/design/flow-control.md.
"""

import asyncio

from app.httpd.tls import limit_socket_buffer
from core.limits import WRITE_BUFFER_SIZE, WRITE_SECONDS, Limit


class WriteBuffer:
    """The output side of one connection."""

    __slots__ = ("_deadline", "_due_size", "_socket_transport", "_transport", "_written_size", "is_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_paused = False  # set by the connection when the transport pauses and resumes writing
        self._transport = transport
        self._socket_transport = limit_socket_buffer(transport, WRITE_BUFFER_SIZE.value)
        self._written_size = 0  # bytes of all answers so far
        self._due_size = 0  # of these, the bytes that must be sent by the deadline; 0 when no deadline is set
        self._deadline = 0.0

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

    def check_deadline(self, now: float) -> Limit | None:
        """Return the limit that the peer has exceeded since the last check, or None.

        WRITE_SECONDS: the deadline is over, and the connection has to be closed. WRITE_BUFFER_SIZE: the peer has just
        become too slow; only worth reporting. `now` is in seconds on the worker's clock (`WorkerState.now`).
        """
        pending_size = self.pending_size
        if not pending_size:
            self._due_size = 0
        elif not self._due_size or self._written_size - pending_size >= self._due_size:
            exceeded = WRITE_BUFFER_SIZE if self.is_paused and not self._due_size else None
            # Everything that was due has been sent; what was written since gets a deadline of its own. (On TLS
            # `pending_size` also counts the framing of TLS records.)
            self._due_size = self._written_size
            self._deadline = now + WRITE_SECONDS.value
            return exceeded
        elif now > self._deadline:
            return WRITE_SECONDS
        return None
