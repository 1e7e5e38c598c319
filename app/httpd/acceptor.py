"""Accepts connections on the listening sockets of one worker, and shares them with the other workers.

All workers poll the same sockets, and the kernel prefers the worker that is idle most often: of 32 connections it got
31. So a worker that has clearly more connections than the emptiest one does not accept for a moment. The argument, and
what was rejected: docs/design/worker-lifecycle.md.

Owns: the readers on the listening sockets, the number of open connections, and the three reasons not to accept:
- ahead: more connections than the emptiest worker, plus slack. Checked again every few milliseconds; after
  YIELD_SECONDS_MAX a batch is accepted anyway, because the emptier worker may be stuck.
- out of descriptors or memory (EMFILE and the like): a pause, and one log line per episode. For a descriptor, the
  connection that has been idle longest is closed.
- full: at `connections_max` the connection that has been idle longest is closed for the new one. When none is idle,
  the new one is a `SurplusConnection`: a probe is answered, anything else gets 503 with Retry-After.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from app.httpd.connection import Connection
from app.httpd.connection_caps import ConnectionCaps
from app.httpd.socket_address import peer_of
from app.httpd.surplus_connection import SurplusConnection
from app.httpd.tls import open_tls
from app.httpd.worker_state import WorkerState
from core.limits import KERNEL_BUFFER_SIZE

# Connections accepted in one turn of the loop; then the open connections are served. When turns are long because many
# open connections are busy, more are accepted: at 150 µs each, a fifth of the time, and at most 10 ms in one turn.
# PERF: with four in each turn of 60 ms (900 busy connections), the last of a hundred new ones waited 1.7 s; now 0.3 s.
BATCH_COUNT: Final = 4
ACCEPTED_PER_SECOND: Final = 1_333
YIELD_SECONDS: Final = 0.002
YIELD_SECONDS_MAX: Final = 0.05
NO_RESOURCES_PAUSE_SECONDS: Final = 0.2
DESCRIPTOR_PAUSE_SECONDS: Final = 0.02  # after a connection was closed for its descriptor
# Published by a worker that no longer accepts, so that the others do not take it for the emptiest one.
NOT_ACCEPTING: Final = 2**31 - 1

_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Occupancy(Protocol):
    """The connection counts of all live workers. Both methods are called for each connection and must not block."""

    def publish(self, connections: int) -> None:
        """Make this worker's count visible to the others; NOT_ACCEPTING when it no longer accepts."""

    def fewest(self) -> int:
        """Return the lowest count of all live workers, this one included."""


class SingleWorker:
    """The occupancy of a worker without others, which is never ahead."""

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
        worker: WorkerState,
        listeners: Sequence[socket.socket],
        occupancy: Occupancy,
        caps: ConnectionCaps,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`listeners` are bound, listening and non-blocking."""
        self.open_count = 0  # accepted and not yet closed, TLS handshakes and surplus connections included
        for listener in listeners:
            # Without the option the kernel would hold up to 4 MB for each peer that does not read (tcp(7)). Accepted
            # sockets inherit the option.
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BUFFER_SIZE.value)
        self._worker = worker
        self._loop = worker.loop
        self._listeners = listeners
        self._occupancy = occupancy
        self._caps = caps
        # Connections above the cap, the oldest first, with the task that opens them.
        self._surplus: dict[SurplusConnection, asyncio.Task[Any]] = {}
        self._tls = tls
        self._yielding_since: float | None = None
        self._batch_ended_at: float | None = None  # when the last batch ended, if more connections may have waited
        self._is_out_of_resources = False
        self._is_stopped = False
        self._pause: asyncio.TimerHandle | None = None
        self._openings: set[asyncio.Task[Any]] = set()  # the loop itself keeps only weak references to its tasks
        worker.on_connection_lost = self._on_lost

    def start(self) -> None:
        """Start or resume accepting."""
        self._pause = None
        self._occupancy.publish(self.open_count)
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._on_readable, listener)

    def stop(self) -> None:
        """Stop accepting for good. Connections in the kernel's backlog are left to the other workers. When the last
        worker has closed its listening sockets, the kernel refuses new clients at once.
        """
        if not self._is_stopped:
            self._is_stopped = True
            self._suspend()
            for listener in self._listeners:
                listener.close()
            self._occupancy.publish(NOT_ACCEPTING)

    def accept_waiting(self) -> None:
        """Accept all waiting connections, even when ahead: when the whole server stops, no other worker will."""
        for listener in self._listeners:
            self._accept(listener, self._caps.connections)

    def _on_readable(self, listener: socket.socket) -> None:
        if self._is_ahead():
            self._yielding_since = self._loop.time()
            self._suspend(YIELD_SECONDS, self._end_yield)
        else:
            self._accept(listener, self._batch_count(), yielding=True)

    def _is_ahead(self) -> bool:
        """Whether this worker has more connections than the emptiest one, by more than one and an eighth."""
        fewest = self._occupancy.fewest()
        return self.open_count > fewest + 1 + fewest // 8

    def _end_yield(self) -> None:
        """Yield once more while a worker is emptier; else resume. After YIELD_SECONDS_MAX accept a batch anyway."""
        assert self._yielding_since is not None
        is_overdue = self._loop.time() - self._yielding_since >= YIELD_SECONDS_MAX
        if self._is_ahead() and not is_overdue:
            self._pause = self._loop.call_later(YIELD_SECONDS, self._end_yield)
            return
        self.start()
        if is_overdue:
            for listener in self._listeners:
                self._accept(listener, BATCH_COUNT)

    def _batch_count(self) -> int:
        """Return how many connections to accept now: more when the last batch left some waiting for a long turn."""
        if self._batch_ended_at is None:
            return BATCH_COUNT
        earned = int(ACCEPTED_PER_SECOND * (self._loop.time() - self._batch_ended_at))
        return max(BATCH_COUNT, min(self._caps.batch, earned))

    def _accept(self, listener: socket.socket, count_max: int, *, yielding: bool = False) -> None:
        """Accept up to `count_max` connections; when `yielding`, stop as soon as this worker is ahead."""
        self._batch_ended_at = None
        for _ in range(count_max):
            try:
                accepted, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                self._end_episode()
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    self._pause_without_resources(error)
                    return
                continue  # only this connection failed: its peer or its network is gone (accept(2))
            self._open(accepted, address)
            if yielding and self._is_ahead():
                return
        self._batch_ended_at = self._loop.time()

    def _open(self, accepted: socket.socket, name: Any) -> None:
        """Open a connection on an accepted socket; `name` is that of its other end."""
        client = peer_of(name)
        if accepted.family == socket.AF_UNIX:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_SIZE.value)
        is_full = self.open_count - len(self._surplus) >= self._caps.connections
        if is_full and not self._worker.deadline_sweep.close_longest_idle():
            self._open_surplus(accepted, client)
        else:
            self._start_opening(Connection(self._worker, client), accepted)

    def _open_surplus(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        """Open a connection above the cap, in place of the oldest one if there are too many."""
        if len(self._surplus) >= self._caps.surplus:
            self._drop_oldest_surplus()
        connection = SurplusConnection(self._worker, client, self._caps.connections, self._forget_surplus)
        self._surplus[connection] = self._start_opening(connection, accepted)

    def _forget_surplus(self, connection: SurplusConnection) -> None:
        self._surplus.pop(connection, None)

    def _drop_oldest_surplus(self) -> bool:
        """Close the oldest connection above the cap; returns False when there is none."""
        if not self._surplus:
            return False
        connection = next(iter(self._surplus))
        opening = self._surplus.pop(connection)
        # Without TLS the connection is made in one of the next turns, and then closes. A task that is cancelled in
        # between would close the socket without telling the connection, which would be open for good.
        if not connection.make_way() and self._tls is not None:
            opening.cancel()  # its TLS handshake is under way
        return True

    def _start_opening(self, connection: Connection, accepted: socket.socket) -> asyncio.Task[Any]:
        self.open_count += 1
        self._occupancy.publish(self.open_count)
        handshake: Coroutine[Any, Any, object]
        if self._tls is None:
            handshake = self._loop.connect_accepted_socket(lambda: connection, accepted)
        else:
            handshake = open_tls(self._loop, connection, accepted, self._tls)
        opening = self._loop.create_task(handshake)
        self._openings.add(opening)
        opening.add_done_callback(partial(self._on_opened, connection))
        return opening

    def _on_opened(self, connection: Connection, opening: asyncio.Task[Any]) -> None:
        self._openings.discard(opening)
        if not opening.cancelled():
            if opening.exception() is None:
                return
            # A failed handshake: plain HTTP on the TLS port, an unknown protocol, a port scan. There is nobody to
            # answer, and nothing that an operator could fix.
            self._worker.log.debug("A connection could not be opened: %r", opening.exception())
        if isinstance(connection, SurplusConnection):
            self._forget_surplus(connection)
        if connection not in self._worker.connections:
            self._on_lost()

    def _on_lost(self) -> None:
        self.open_count -= 1
        if not self._is_stopped:
            self._occupancy.publish(self.open_count)

    def _pause_without_resources(self, error: OSError) -> None:
        if not self._is_out_of_resources:
            self._is_out_of_resources = True
            self._worker.log.error("Cannot accept connections for now: %s (%d are open)", error, self.open_count)
        sweep = self._worker.deadline_sweep
        is_freed = error.errno in _NO_DESCRIPTORS and (sweep.close_longest_idle() or self._drop_oldest_surplus())
        if not self._is_stopped:
            self._suspend(DESCRIPTOR_PAUSE_SECONDS if is_freed else NO_RESOURCES_PAUSE_SECONDS, self.start)

    def _end_episode(self) -> None:
        """Log that a shortage is over: no connection waits. A freed descriptor that is used at once does not end it."""
        if self._is_out_of_resources:
            self._is_out_of_resources = False
            self._worker.log.info("Accepting connections again")

    def _suspend(self, seconds: float = 0.0, resume: Callable[[], None] | None = None) -> None:
        """Stop polling the listening sockets, and call `resume` after `seconds` when it is given."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._loop.call_later(seconds, resume) if resume is not None else None
