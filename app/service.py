"""The service: what all connections of one worker share.

Owns the application, the clock of the deadlines, the Date line, the counts (requests served, refusals by code, bytes
of large bodies in memory) and the small thread pool for the few routes that may block. The worker makes one after the
fork and ticks it; connections read it on every request, which is why its fields are plain attributes. Everything runs
on the loop's thread, so nothing here is locked.

The clock is patient: a tick advances it by at most `TICK_SECONDS_MAX`, however much time has passed. When the
container is throttled or a request held the loop, the bytes that clients sent in time are still in the kernel; with
the real clock their deadlines would be over before they are read. Rejected: a timer per request (two heap operations
and a callback for something that all but never fires).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import formatdate
from logging import Logger
from typing import TYPE_CHECKING, Final, Protocol
from wsgiref.types import StartResponse, WSGIEnvironment

from app.framing import Refusal
from core.limits import BODIES_SIZE

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.connection import Connection

POOL_THREADS: Final = 2
TICK_SECONDS_MAX: Final = 0.5


class Application(Protocol):
    """A WSGI application. It may add the methods below; a worker looks for them by name and does without.

    `may_block(method, path)`: True sends the request to the thread pool, False answers it inline on the loop.
    `open(worker)`: after the fork, before the first connection. `close()`: after the last one. `on_beat()`: four
    times a second.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse, /) -> Iterable[bytes]: ...


class Service:
    """One worker's side of all its connections."""

    def __init__(
        self,
        application: Application,
        loop: "AbstractEventLoop",
        log: Logger,
        *,
        scheme: str = "http",
        served_max: int = 0,
        retire: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`retire` is called once, when request number `served_max` has been taken (0: never)."""
        self.application = application
        self.may_block: Callable[[str, str], bool] | None = getattr(application, "may_block", None)
        self.loop = loop
        self.log = log
        self.scheme = scheme
        self.connections: set[Connection] = set()
        self.draining = False  # every answer from now on carries Connection: close
        self.served = 0  # requests handed to the application
        self.served_max = served_max
        self.retire = retire
        self.lost: Callable[[], None] = lambda: None  # called for each connection that ends; whoever accepts sets it
        self.refusals: Counter[str] = Counter()  # by the code of the limit or guard that was passed
        self.bodies_size = 0  # bytes of large bodies in memory, bounded by BODIES_SIZE
        self.now = 0.0  # seconds, patient, arbitrary origin
        self.date = ""
        self._clock, self._wall = clock, wall
        self._ticked = clock()
        self._second = 0
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[None]] = set()
        self.tick()

    def tick(self) -> None:
        """Advance the clock and the Date line (RFC 9110 §6.6.1); to be called a few times a second."""
        moment = self._clock()
        self.now += min(moment - self._ticked, TICK_SECONDS_MAX)
        self._ticked = moment
        second = int(self._wall())
        if second != self._second:
            self._second = second
            self.date = f"Date: {formatdate(second, usegmt=True)}\r\n"

    def sweep(self) -> None:
        """Let every connection look at its deadlines: about 0.1 µs each."""
        for connection in tuple(self.connections):
            connection.sweep()

    def reserve(self, size: int) -> None:
        """Set `size` bytes aside for a large body. Raises Refusal (503) rather than let clients fill the memory
        together.
        """
        if self.bodies_size + size > BODIES_SIZE.value:
            detail = f"This worker already holds {self.bodies_size} bytes of request bodies; try again in a second."
            raise Refusal(BODIES_SIZE.status, BODIES_SIZE.code, detail, retry_after=1)
        self.bodies_size += size

    def submit(self, work: Callable[[WSGIEnvironment, str], None], environ: WSGIEnvironment, connection: str) -> None:
        """Run `work` on a thread of the pool, which is made when the first route needs it."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="route")
        running = self._pool.submit(work, environ, connection)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def close(self) -> bool:
        """Take no more work for the pool. False when something still runs on it, which cannot be interrupted."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return not any(work.running() for work in tuple(self._running))
