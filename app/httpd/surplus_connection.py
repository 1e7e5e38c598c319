"""A connection above the cap of its worker: it is answered once, and only a probe gets what it asks for.

Whoever judges a full server by a probe would otherwise be refused with the rest, and end a server that works: its
memories would be lost. So paths that the application names (`Hooks.probes`) are served, with `Connection: close`;
any other request, and silence for PROBE_SECONDS, gets 503 with Retry-After. The acceptor bounds their number and
closes the oldest for a new one, so a crowd that sends nothing keeps no probe out.

Perf: `Connection` knows nothing of this, so requests below the cap pay nothing for it.
"""

import asyncio
from collections.abc import Callable
from typing import Final
from wsgiref.types import WSGIEnvironment

from app.httpd.connection import Connection
from app.httpd.connection_state import READY
from app.httpd.refusal import Refusal
from app.httpd.response import CLOSE
from app.httpd.worker_state import WorkerState
from core.limits import PROBE_SECONDS

TOO_MANY: Final = "too_many_connections"


class SurplusConnection(Connection):
    """One client's connection above the cap."""

    __slots__ = ("_answer_by", "_connections_max", "_makes_way", "_on_lost")

    def __init__(
        self,
        worker: WorkerState,
        client: tuple[str, int],
        connections_max: int,
        on_lost: Callable[["SurplusConnection"], object],
    ) -> None:
        """`connections_max` is the cap; `on_lost` is called with this connection when it has ended."""
        super().__init__(worker, client)
        self._connections_max = connections_max
        self._on_lost = on_lost
        self._makes_way = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.deadline = self._answer_by = self.worker.now + PROBE_SECONDS.value
        if self._makes_way:
            self.make_way()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost(self)
        super().connection_lost(error)

    def check_deadlines(self) -> bool:
        """Refuse a client that has sent no request in time. Never idle: it makes room for nobody."""
        if self.state != READY:
            return super().check_deadlines()
        if self.worker.now <= self.deadline:
            return False
        self.refuse(self._refusal())
        return True

    def make_way(self) -> bool:
        """Close at once, for a newer one; returns False if there is no transport yet, and then closes when it comes."""
        self._makes_way = True
        transport = getattr(self, "_transport", None)
        if transport is not None:
            self._stop_serving()  # until the loop says that it is lost, no deadline may answer on it
            transport.abort()
        return transport is not None

    def _on_request(self, environ: WSGIEnvironment, _persistence: str) -> bool:
        if environ["PATH_INFO"] in self.worker.probes:
            return super()._on_request(environ, CLOSE)
        self.worker.bodies.release(environ)
        self.refuse(self._refusal(), environ)
        return False

    def _reserve(self, _size: int, _environ: WSGIEnvironment) -> None:
        """Read no large body."""
        raise self._refusal()

    def _send_continue(self) -> None:
        """Ask for no body."""
        if self.parser.pop_expectation() is not None:
            self.refuse(self._refusal())

    def _parse(self, data: bytes | memoryview) -> None:
        super()._parse(data)
        if self.state == READY:
            self.deadline = self._answer_by  # the first byte of a head gives no more time

    def _refusal(self) -> Refusal:
        """A new one each time: an exception that is raised again would collect tracebacks."""
        return full_refusal(self._connections_max)


def full_refusal(connections_max: int) -> Refusal:
    """Return the refusal of a client above the cap."""
    detail = f"This worker has its maximum of {connections_max} connections; try again in a second."
    return Refusal(503, TOO_MANY, detail, retry_after=1)
