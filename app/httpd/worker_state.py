"""What all connections of one worker share.

Owns the application and its hooks, the clock of the deadlines, the lines that all answers carry (Date, the default
headers), the budgets of request bodies and waiting requests, the queues of connections, and the thread pool for the
few routes that may block. Made after the fork. PERF: connections read its attributes for every request, so these are
plain attributes, not properties.

Threading: the loop's thread only, except `report_refusal`. Nothing is locked.

The clock `now` advances by at most TICK_SECONDS_MAX per tick, however much time has passed. When the container was
throttled, or a request held the loop, the bytes that clients sent in time are still in the kernel; by the real clock
their deadlines would be over before the bytes are read.
"""

import time
from asyncio import Future, wait
from collections.abc import Callable
from concurrent.futures import Future as PoolFuture
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from logging import DEBUG, Logger
from typing import TYPE_CHECKING, Final, Protocol
from wsgiref.types import WSGIEnvironment

from app.httpd.application import Chunks, WsgiApplication, hooks_of
from app.httpd.body_admission import BodyAdmission
from app.httpd.byte_budget import ByteBudget
from app.httpd.deadline_sweep import DeadlineSweep, SweptConnection
from app.httpd.fair_queue import FairQueue
from app.httpd.head_cache import HeadCache
from app.httpd.long_answers import LongAnswerQueue
from app.httpd.request_log import RequestLog
from app.httpd.request_names import RequestNames, log_fields
from app.httpd.response import DefaultHeaders
from app.httpd.slow_readers import SlowReaders
from core.limits import BODIES_SIZE, PIPELINES_SIZE

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

POOL_THREADS: Final = 2
TICK_SECONDS_MAX: Final = 0.5
CANCEL_SECONDS: Final = 0.5  # for the clean-up of deferred answers that are cancelled because the worker ends


class OpenConnection(SweptConnection, Protocol):
    """What a worker needs of each of its connections (`app.httpd.connection.Connection`)."""

    def cancel_deferred(self) -> Future[Chunks] | None:
        """Cancel a deferred answer and close; returns its future, None when there is none."""


class WorkerState:
    """The shared state of one worker."""

    def __init__(
        self,
        application: WsgiApplication,
        loop: "AbstractEventLoop",
        log: Logger,
        *,
        scheme: str = "http",
        served_max: int = 0,
        retire: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`retire` is called once, when request number `served_max` has been taken (0: never). `clock` is monotonic and
        `wall` is Unix time, both in seconds.
        """
        hooks = hooks_of(application)
        self.application = hooks.serve
        self.inline = hooks.inline
        self.way_of = hooks.way_of
        self.compressed = hooks.compressed
        self.probes = hooks.probes
        self.on_answer = hooks.on_answer
        self._on_refusal = hooks.on_refusal
        self.default_headers = DefaultHeaders(hooks.default_headers, secure=scheme == "https")
        self.request_names = RequestNames()
        self.head_cache = HeadCache()
        self.loop = loop
        self.log = log
        self.logs_requests = log.isEnabledFor(DEBUG)
        self.request_log = RequestLog(log, hooks.request_sample_ratio, hooks.route_of)
        self.scheme = scheme
        self.connections: set[OpenConnection] = set()
        self.draining = False  # every answer from now on carries Connection: close
        self.served = 0  # requests handed to the application
        self.served_max = served_max
        self.retire = retire
        self.on_connection_lost: Callable[[], None] = lambda: None  # set by the acceptor
        self.bodies = BodyAdmission(ByteBudget(BODIES_SIZE, "request bodies; try again in a second"), hooks.wants_body)
        self.pipelines = ByteBudget(PIPELINES_SIZE, "requests that wait for their turn; try again in a second")
        self.fair_queue = FairQueue(loop, clock)
        self.long_answers = LongAnswerQueue(loop)
        self.slow_readers = SlowReaders(loop, lambda: self.now, log)
        self.deadline_sweep = DeadlineSweep(loop, self.connections)
        self.now = 0.0  # seconds since an arbitrary origin; see above
        self.date = ""
        self._clock, self._wall = clock, wall
        self._ticked_at = clock()
        self._second = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pool_work: set[PoolFuture[None]] = set()
        self.tick()

    def tick(self) -> None:
        """Advance the clock and the Date line (RFC 9110 §6.6.1); to be called a few times a second."""
        moment = self._clock()
        self.now += min(moment - self._ticked_at, TICK_SECONDS_MAX)
        self._ticked_at = moment
        second = int(self._wall())
        if second != self._second:
            self._second = second
            self.date = f"Date: {formatdate(second, usegmt=True)}\r\n"

    def report_refusal(self, code: str, environ: WSGIEnvironment, detail: str, status: int = 0) -> None:
        """Log a refusal at DEBUG and tell the application, from any thread; never raises.

        `code` is the name of the limit or guard. `status` is what the client is told; 0 when its connection is closed,
        or read no further, without an answer. `environ` holds at least the peer and the id of the request; the id is
        empty when there is no request (`app.httpd.request_names.peer_only_environ`).
        """
        if self.logs_requests:
            self.log.debug("Refused: %s", detail, extra={"code": code, "status": status, **log_fields(environ)})
        try:
            self._on_refusal(code, environ, status)
        except Exception:
            self.log.exception("on_refusal failed", extra=log_fields(environ))

    def run_on_pool(
        self, work: Callable[[WSGIEnvironment, str], None], environ: WSGIEnvironment, persistence: str
    ) -> None:
        """Run `work` on a thread of the pool, which is made when the first route needs it."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="route")
        running = self._pool.submit(work, environ, persistence)
        self._pool_work.add(running)
        running.add_done_callback(self._pool_work.discard)

    def cancel_deferred(self) -> None:
        """Cancel all deferred answers and close their connections, because the worker ends."""
        for connection in tuple(self.connections):
            connection.cancel_deferred()

    def close(self) -> bool:
        """Cancel all deferred answers, wait a moment for them to end, and give the pool no more work.

        To be called when the loop has stopped. Returns False when something still runs on the pool, which cannot be
        interrupted.
        """
        cancelled = [future for c in tuple(self.connections) if (future := c.cancel_deferred()) is not None]
        if cancelled:
            self.loop.run_until_complete(wait(cancelled, timeout=CANCEL_SECONDS))
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return not any(work.running() for work in tuple(self._pool_work))
