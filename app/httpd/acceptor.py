"""The acceptor: which worker takes the next connection.

All workers of a server poll the same listening sockets, and the kernel wakes whoever sleeps: the worker that is idle
most often takes nearly everything (of 32 connections: 31 and 1), while keep-alive clients stay with the worker they
got. So a worker that is well ahead of the emptiest one leaves the backlog alone for a moment. The counts travel
through `Occupancy`, which the composition root provides; the acceptor itself knows no shared memory.

Owns: the readers on the listening sockets, the number of open connections, and the three reasons not to accept:
- ahead: more connections than the emptiest worker by more than a small slack. Looked at again every few milliseconds,
  and after YIELD_SECONDS_MAX a batch is taken in any case: a wedged or dying neighbour must not starve clients.
- out of descriptors or memory (EMFILE and its kin): a pause, one line in the log per episode. Without the pause the
  level-triggered poll would spin on a connection that cannot be taken.
- full: at `connections_max` the connection that was idle longest makes room for a new one. When none is idle, the new
  one is accepted, told 503 with Retry-After, and closed: leaving it in the backlog would make a client wait for its
  own timeout to learn the same.

Rejected: SO_REUSEPORT (the kernel hashes clients to workers once, evenly only in the long run, and loses the backlog
of a worker that exits); EPOLLEXCLUSIVE (libuv has no way to ask for it, and it wakes one worker, not the emptiest).
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from app.httpd.connection import Connection
from app.httpd.framing import Refusal
from app.httpd.request_names import peer_only_environ
from app.httpd.tls import open_tls
from app.httpd.worker_state import WorkerState
from core.limits import KERNEL_BUFFER_SIZE

# Accepted per wake-up; between batches the connections already open get their turn. When that takes long, because they
# are many and busy, more: a fifth of the time at 150 µs each, but at once no more than 10 ms of it. PERF: with four for
# each turn of 900 busy connections, 60 ms, the last of a hundred new ones waited for 1.7 s; now for 0.3.
BATCH_COUNT: Final = 4
BATCH_COUNT_MAX: Final = 64
ACCEPTED_PER_SECOND: Final = 1_333
YIELD_SECONDS: Final = 0.002
YIELD_SECONDS_MAX: Final = 0.05
STARVED_SECONDS: Final = 0.2
# Connections above the maximum that may be told so at the same time; beyond them they are closed without a word.
REFUSED_COUNT_MAX: Final = 64
# What a worker publishes when it accepts no more, so that nobody waits for it to fill up.
NOT_ACCEPTING: Final = 2**31 - 1
_TOO_MANY: Final = "too_many_connections"

_STARVED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Occupancy(Protocol):
    """The connection counts of all live workers. Both methods are called for each connection and must not block."""

    def publish(self, connections: int) -> None:
        """Make this worker's count known; NOT_ACCEPTING when it takes no more."""

    def fewest(self) -> int:
        """Return the lowest count over live workers, this one included."""


class SingleWorker:
    """The occupancy of a worker that knows of no other: never ahead of anybody."""

    def __init__(self) -> None:
        self._connections = 0

    def publish(self, connections: int) -> None:
        self._connections = connections

    def fewest(self) -> int:
        return self._connections


class Acceptor:
    """Accepts connections on all listening sockets of one worker."""

    def __init__(
        self,
        service: WorkerState,
        listeners: Sequence[socket.socket],
        occupancy: Occupancy,
        connections_max: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`listeners` are bound, listening and non-blocking."""
        self.open_count = 0  # accepted and not yet lost, TLS handshakes included
        for listener in listeners:
            # The kernel would take up to 4 MB for each peer that does not read (tcp(7)). What is accepted inherits it.
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BUFFER_SIZE.value)
        self._service = service
        self._loop = service.loop
        self._listeners = listeners
        self._occupancy = occupancy
        self._connections_max = connections_max
        self._tls = tls
        self._yielding_since: float | None = None
        self._left_waiting: float | None = None  # when the last batch ended, if more than that were waiting
        self._starved = False
        self._stopped = False
        self._pause: asyncio.TimerHandle | None = None
        self._openings: set[asyncio.Task[Any]] = set()  # the loop itself keeps only weak references to its tasks
        service.lost = self._lost

    def start(self) -> None:
        """Begin, or resume, to accept."""
        self._pause = None
        self._occupancy.publish(self.open_count)
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._readable, listener)

    def stop(self) -> None:
        """Accept no more. What waits in the backlog is left to other workers; when the last of them has closed its
        listening sockets, new clients are refused at once instead of waiting for nobody.
        """
        if not self._stopped:
            self._stopped = True
            self._suspend()
            for listener in self._listeners:
                listener.close()
            self._occupancy.publish(NOT_ACCEPTING)

    def accept_waiting(self) -> None:
        """Take what waits now, whoever is ahead: on the way out of a whole server nobody else will."""
        for listener in self._listeners:
            self._accept(listener, self._connections_max)

    def _readable(self, listener: socket.socket) -> None:
        if self._ahead():
            self._yielding_since = self._loop.time()
            self._suspend(YIELD_SECONDS, self._yielded)
        else:
            self._accept(listener, self._batch_count(), yielding=True)

    def _ahead(self) -> bool:
        fewest = self._occupancy.fewest()
        return self.open_count > fewest + 1 + fewest // 8

    def _yielded(self) -> None:
        """The moment given to emptier workers is over; give another one, or resume."""
        assert self._yielding_since is not None
        overdue = self._loop.time() - self._yielding_since >= YIELD_SECONDS_MAX
        if self._ahead() and not overdue:
            self._pause = self._loop.call_later(YIELD_SECONDS, self._yielded)
            return
        self.start()
        if overdue:
            for listener in self._listeners:
                self._accept(listener, BATCH_COUNT)

    def _batch_count(self) -> int:
        if self._left_waiting is None:
            return BATCH_COUNT
        earned = int(ACCEPTED_PER_SECOND * (self._loop.time() - self._left_waiting))
        return max(BATCH_COUNT, min(BATCH_COUNT_MAX, earned))

    def _accept(self, listener: socket.socket, count_max: int, *, yielding: bool = False) -> None:
        """Take up to `count_max` connections; stop early when `yielding` and ahead."""
        self._left_waiting = None
        for _ in range(count_max):
            try:
                accepted, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                self._recovered()
                return
            except OSError as error:
                if error.errno in _STARVED:
                    self._starve(error)
                    return
                continue  # the peer left while it waited, or the network failed it alone (accept(2), Error handling)
            self._open(accepted, address)
            if yielding and self._ahead():
                return
        self._left_waiting = self._loop.time()

    def _open(self, accepted: socket.socket, address: tuple[Any, ...]) -> None:
        refusal = None
        client = address[0], address[1]  # an IPv6 address has four parts; WSGI knows two
        if self.open_count >= self._connections_max and not self._service.deadline_sweep.close_longest_idle():
            detail = f"This worker already has its {self._connections_max} connections; try again in a second."
            if self.open_count >= self._connections_max + REFUSED_COUNT_MAX:
                accepted.close()
                self._service.refused(_TOO_MANY, peer_only_environ(client), detail)
                return
            refusal = Refusal(503, _TOO_MANY, detail, retry_after=1)
        self.open_count += 1
        self._occupancy.publish(self.open_count)
        connection = Connection(self._service, client, refusal)
        handshake: Coroutine[Any, Any, object]
        if self._tls is None:
            handshake = self._loop.connect_accepted_socket(lambda: connection, accepted)
        else:
            handshake = open_tls(self._loop, connection, accepted, self._tls)
        opening = self._loop.create_task(handshake)
        self._openings.add(opening)
        opening.add_done_callback(partial(self._opened, connection))

    def _opened(self, connection: Connection, opening: asyncio.Task[Any]) -> None:
        self._openings.discard(opening)
        if opening.cancelled() or opening.exception() is None:
            return
        # A failed handshake: plain HTTP on the TLS port, an unknown protocol, a port scan. Nothing to answer, nothing
        # to report.
        self._service.log.debug("A connection could not be opened: %r", opening.exception())
        if connection not in self._service.connections:
            self._lost()

    def _lost(self) -> None:
        self.open_count -= 1
        if not self._stopped:
            self._occupancy.publish(self.open_count)

    def _starve(self, error: OSError) -> None:
        if not self._starved:
            self._starved = True
            self._service.log.error("Cannot accept connections for now: %s (%d are open)", error, self.open_count)
        if not self._stopped:
            self._suspend(STARVED_SECONDS, self.start)

    def _recovered(self) -> None:
        """Nobody waits any more, which ends an episode; a descriptor that came back and went again does not."""
        if self._starved:
            self._starved = False
            self._service.log.info("Accepting connections again")

    def _suspend(self, seconds: float = 0.0, resume: Any = None) -> None:
        """Stop polling the listening sockets, and call `resume` after `seconds` if given."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._loop.call_later(seconds, resume) if resume is not None else None
