"""The TLS layer: uvloop's own, which lets the connection above see the socket below.

uvloop encrypts whatever it is given at once and hands it to the socket's transport. What waits there it neither counts
(`get_write_buffer_size`) nor reports (`pause_writing`), up to any size: a peer that reads nothing would look like one
that has read all, would never be cut off, and one that reads slowly would lose the rest of its answer to a close that
seems to have nothing to wait for. This layer passes on what the socket's transport says, so that bounds, deadlines and
ends (`app.httpd.write_buffer`, `app.httpd.connection`) mean on TLS what they mean without.

The end is TLS's all the same: `close` sends what is left, then close_notify, and reads into the void until the peer
answers with its own or closes (RFC 8446 §6.1). How long that may take is the connection's to say; uvloop's timer is
only the net below.

Rejected: giving uvloop small slices, the next when it asks for more (it asks only above 64 kB, so the last 64 kB, all
there is of most answers, would be invisible still); the standard library's layer (the same blindness, in Python).

NOTE: the class is not part of uvloop's documented interface. The tests of slow readers hold for whichever release is
installed, and fail if it changes.
"""

import asyncio
import ssl
from typing import Any, Final

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # the stubs leave it out

from core.limits import HEADERS_SECONDS, WRITE_SECONDS

# Never the first to end: the peer has WRITE_SECONDS for what was written at one look, and as much for the rest.
_SHUTDOWN_SECONDS: Final = 3 * WRITE_SECONDS.value
_NEVER_FULL: Final = 2**31 - 1


class Tls(SSLProtocol):  # type: ignore[misc]  # a class without types
    """The layer of one connection, between it and the transport of its socket."""

    __slots__ = ("_above", "_is_paused", "below")

    below: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        above: asyncio.Protocol,
        context: ssl.SSLContext,
        opened: "asyncio.Future[None] | None" = None,
    ) -> None:
        """`above` is the connection; `opened` is done when the handshake is, or fails with it."""
        super().__init__(
            loop, above, context, opened, server_side=True, ssl_handshake_timeout=HEADERS_SECONDS.value,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
        )  # fmt: skip
        self._above: asyncio.Protocol | None = above
        self._is_paused = False

    def connection_made(self, transport: Any) -> None:
        self.below = transport
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._above = None  # a cycle, which would keep both until the collector finds them

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_paused = True
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        self._is_paused = False
        super().resume_writing()  # writes what it holds back, and may be paused again by that
        if self._above is not None and not self._is_paused:
            self._above.resume_writing()


async def open_tls(
    loop: asyncio.AbstractEventLoop,
    above: asyncio.Protocol,
    accepted: Any,
    context: ssl.SSLContext,
) -> None:
    """Open `above` on an accepted socket, behind a handshake; raises what ended that."""
    opened: asyncio.Future[None] = loop.create_future()
    await loop.connect_accepted_socket(lambda: Tls(loop, above, context, opened), accepted)
    await opened


def socket_below(transport: asyncio.Transport, high: int) -> asyncio.Transport:
    """Return the transport of the socket that `transport` ends in, itself without TLS, and have it say when more than
    `high` bytes wait there: nobody else does.
    """
    layer = transport.get_extra_info("uvloop.sslproto")
    if not isinstance(layer, Tls):
        transport.set_write_buffer_limits(high=high)
        return transport
    transport.set_write_buffer_limits(high=_NEVER_FULL)
    layer.below.set_write_buffer_limits(high=high)
    return layer.below
