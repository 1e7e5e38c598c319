"""The writer: answers on their way to one peer, and whether it takes them.

A peer that reads slowly makes us keep what it does not take. Over WRITE_BUFFER_SIZE nothing more is answered until it
does (`is_paused`), and what was written at one look has to be gone WRITE_SECONDS later: absolute, so that a peer that
takes a byte a second is cut off like one that takes none. On TLS it is the same: bytes count until the kernel has them
(`app.httpd.tls`), not until they are encrypted.
"""

import asyncio

from app.httpd.tls import limit_socket_buffer
from core.limits import WRITE_BUFFER_SIZE, WRITE_SECONDS, Limit


class WriteBuffer:
    """The way out of one connection."""

    __slots__ = ("_below", "_deadline", "_mark", "_transport", "_written", "is_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_paused = False  # the write buffer is over its limit
        self._transport = transport
        self._below = limit_socket_buffer(transport, WRITE_BUFFER_SIZE.value)
        self._written = 0  # bytes, all answers together
        self._mark = 0  # how many of these must be gone by the deadline
        self._deadline = 0.0

    def write(self, answer: bytes) -> None:
        """Send an answer, as far as the peer takes it; the rest waits in memory."""
        self._written += len(answer)
        self._transport.write(answer)

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken."""
        pending = self._transport.get_write_buffer_size()
        if self._below is not self._transport:
            pending += self._below.get_write_buffer_size()
        return pending

    def check_deadline(self, now: float) -> Limit | None:
        """Return the limit that the peer has passed since the last look, if any: WRITE_SECONDS is the end,
        WRITE_BUFFER_SIZE is worth a note. `now` in seconds, on the patient clock.
        """
        pending = self.pending
        if not pending:
            self._mark = 0
        elif not self._mark or self._written - pending >= self._mark:
            passed = WRITE_BUFFER_SIZE if self.is_paused and not self._mark else None
            # All that was written when the mark was set is gone; the rest has its own time from now on. (On TLS what
            # waits is a little more than what was written, for its framing.)
            self._mark = self._written
            self._deadline = now + WRITE_SECONDS.value
            return passed
        elif now > self._deadline:
            return WRITE_SECONDS
        return None
