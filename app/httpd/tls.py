"""uvloop's TLS layer, extended to report to the connection above it what the socket below it has not sent.

uvloop encrypts data as soon as it is written and passes the result to the socket's transport. It neither counts what
waits there (`get_write_buffer_size`) nor reports it (`pause_writing`), however much it is. Without this layer a peer
that reads nothing would look like one that has read everything and would never be disconnected; and a close would
discard the rest of a slow reader's answer, because nothing would seem to be left to send. The layer forwards the flow
control of the socket's transport, so limits, deadlines and closing (`app.httpd.write_buffer`, `app.httpd.connection`)
work on TLS as they do without it. How the two buffers are counted: docs/design/flow-control.md.

Invariants: `close` sends what is left, then close_notify, and discards input until the peer sends its own close_notify
or closes (RFC 8446 §6.1). The connection limits how long that may take; uvloop's own timer is only the last resort.

NOTE: `SSLProtocol` is not part of uvloop's documented interface. The tests of slow readers run against the installed
release and fail when it changes.
"""

import asyncio
import ssl
from typing import Any, Final

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # missing from uvloop's stubs

from core.limits import ANSWERS_SIZE, HEADERS_SECONDS, READ_RATE

# Longer than the connection's own deadlines, which end it first: the slowest reader may take so long for the most that
# can wait for it (`app.httpd.write_buffer`).
_SHUTDOWN_SECONDS: Final = 2 * ANSWERS_SIZE.value // READ_RATE.value
_UNLIMITED: Final = 2**31 - 1


class TlsLayer(SSLProtocol):  # type: ignore[misc]  # the base class is untyped
    """The TLS layer of one connection, between the connection and the transport of its socket."""

    __slots__ = ("_connection", "_is_paused", "socket_transport")

    socket_transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: asyncio.Protocol,
        context: ssl.SSLContext,
        opened: "asyncio.Future[None] | None" = None,
    ) -> None:
        """Put TLS below `connection`. `opened` is resolved by the end of the handshake, or gets its exception."""
        super().__init__(
            loop, connection, context, opened, server_side=True, ssl_handshake_timeout=HEADERS_SECONDS.value,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
        )  # fmt: skip
        self._connection: asyncio.Protocol | None = connection
        self._is_paused = False

    def connection_made(self, transport: Any) -> None:
        self.socket_transport = transport
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._connection = None  # breaks a reference cycle, which would wait for the garbage collector

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_paused = True
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._is_paused = False
        super().resume_writing()  # writes what was held back, which may pause writing again
        if self._connection is not None and not self._is_paused:
            self._connection.resume_writing()


async def open_tls(
    loop: asyncio.AbstractEventLoop,
    connection: asyncio.Protocol,
    accepted: Any,
    context: ssl.SSLContext,
) -> None:
    """Open `connection` on the socket `accepted` after a TLS handshake. Raises what made the handshake fail."""
    opened: asyncio.Future[None] = loop.create_future()
    transport, _ = await loop.connect_accepted_socket(lambda: TlsLayer(loop, connection, context, opened), accepted)
    try:
        await opened
    except asyncio.CancelledError:
        transport.abort()
        raise


def limit_socket_buffer(transport: asyncio.Transport, size_max: int) -> asyncio.Transport:
    """Pause writing while more than `size_max` bytes wait in the socket's transport, and return that transport.

    Without TLS the socket's transport is `transport` itself. On TLS the layer's own limit is removed, because
    everything is passed on at once and waits in the socket's transport.
    """
    layer = transport.get_extra_info("uvloop.sslproto")
    if not isinstance(layer, TlsLayer):
        transport.set_write_buffer_limits(high=size_max)
        return transport
    transport.set_write_buffer_limits(high=_UNLIMITED)
    layer.socket_transport.set_write_buffer_limits(high=size_max)
    return layer.socket_transport
