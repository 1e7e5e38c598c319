"""The service: what all connections of one worker share.

Owns the application, the clock of the deadlines, the lines that all answers share (Date, the standing headers), the
names of requests, the bounds of what clients make it hold (`app.httpd.byte_budget`, `app.httpd.slow_readers`), the two
lines in which connections wait for their turn (`app.httpd.fair_queue`, `app.httpd.long_answers`), the rounds of
deadlines (`app.httpd.deadline_sweep`), and the small thread pool for the few routes that may block. The worker makes
one after the fork and ticks it; connections read it on every request, which is why its fields are plain attributes. All
but
`refused` is for the loop's thread alone, so nothing here is locked.

The clock is patient: a tick advances it by at most `TICK_SECONDS_MAX`, however much time has passed. When the
container is throttled or a request held the loop, the bytes that clients sent in time are still in the kernel; with
the real clock their deadlines would be over before they are read.
"""

import time
from collections.abc import Callable, Container, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import formatdate
from logging import DEBUG, Logger
from typing import TYPE_CHECKING, Final, Protocol
from wsgiref.types import StartResponse, WSGIEnvironment

from app.httpd.byte_budget import ByteBudget
from app.httpd.deadline_sweep import DeadlineSweep
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

    from app.httpd.connection import Connection

# How a request is answered.
INLINE: Final = 0
POOL: Final = 1
IN_PIECES: Final = 2

POOL_THREADS: Final = 2
TICK_SECONDS_MAX: Final = 0.5


class WsgiApplication(Protocol):
    """A WSGI application. It may add the members below; a worker looks for them by name, before it calls `open`, and
    does without.

    `serve`: what is called in place of the application itself, one call shorter.
    `inline`: paths that are answered on the loop whatever the method; all others are asked about:
    `may_block(method, path) -> int`: INLINE (or False) answers the request on the loop, POOL (or True) on the thread
    pool, IN_PIECES on the loop, when its answer takes long to make: the application should then return a generator, as
    soon as it has found nothing to refuse, and is asked for one piece in each turn of the loop, of no more than a
    quarter of a millisecond.
    `wants_body(environ) -> bool`: whether a body is wanted that the client holds back (Expect: 100-continue), or that
    is large. Called before there is one; after False the application is called with an empty body, to say why not.
    `on_refusal(code, environ, status)`: whenever a connection passed a limit or broke a rule, or a request met an error
    of ours; see `WorkerState.refused`.
    `on_answer(environ, status)`: whenever an answer is about to be written, also one that no route has made. What it
    returns, unless that is None, is called with the same environ when the answer has been written.
    `route_of(path)`: the template of a path's route, or None; `request_sample_ratio`: the share of requests that went
    well which has a line at DEBUG (1). See `app.httpd.request_log`.
    `standing_headers`, pairs of name and value: what all answers carry, see `app.httpd.response`.
    `open(worker)`: after the fork, before any of the others is looked for. `close()`: after the last request.
    `on_beat()`: four times a second.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse, /) -> Iterable[bytes]: ...


class WorkerState:
    """One worker's side of all its connections."""

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
        """`retire` is called once, when request number `served_max` has been taken (0: never)."""
        self.application: WsgiApplication = getattr(application, "serve", application)
        self.inline: Container[str] = getattr(application, "inline", frozenset())
        self.may_block: Callable[[str, str], int] | None = getattr(application, "may_block", None)
        self.wants_body: Callable[[WSGIEnvironment], bool] | None = getattr(application, "wants_body", None)
        self._on_refusal: Callable[[str, WSGIEnvironment, int], object] | None = getattr(
            application, "on_refusal", None
        )
        self.count: Callable[[WSGIEnvironment, str], Callable[[WSGIEnvironment], object] | None]
        self.count = getattr(application, "on_answer", lambda *_: None)
        self.standing = DefaultHeaders(getattr(application, "standing_headers", ()), secure=scheme == "https")
        self.request_names = RequestNames()
        self.head_cache = HeadCache()
        self.loop = loop
        self.log = log
        self.verbose = log.isEnabledFor(DEBUG)  # requests have lines
        self.request_log = RequestLog(
            log,
            getattr(application, "request_sample_ratio", 1.0),
            getattr(application, "route_of", lambda _path: None),
        )
        self.scheme = scheme
        self.connections: set[Connection] = set()
        self.draining = False  # every answer from now on carries Connection: close
        self.served = 0  # requests handed to the application
        self.served_max = served_max
        self.retire = retire
        self.lost: Callable[[], None] = lambda: None  # called for each connection that ends; whoever accepts sets it
        self.bodies = ByteBudget(BODIES_SIZE, "request bodies; try again in a second")
        self.pipelines = ByteBudget(PIPELINES_SIZE, "pipelined requests; send one at a time")
        self.fair_queue = FairQueue(loop, clock)
        self.long_answers = LongAnswerQueue(loop)
        self.slow_readers = SlowReaders(loop, lambda: self.now)
        self.deadline_sweep = DeadlineSweep(loop, self.connections)
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

    def refused(self, code: str, environ: WSGIEnvironment, detail: str, status: int = 0) -> None:
        """Log a refusal at DEBUG and tell the application, from any thread; never raises.

        `code` is the name of the limit or guard, `status` what the client is told, 0 when nothing: its connection is
        closed, or read no further, without a word. `environ` is that of the request, as far as it was read; it has at
        least the peer and the request's id, which is empty when there is no request to name
        (`app.httpd.request_names.peer_only_environ`).
        """
        if self.verbose:
            self.log.debug("Refused: %s", detail, extra={"code": code, "status": status, **log_fields(environ)})
        if self._on_refusal is not None:
            try:
                self._on_refusal(code, environ, status)
            except Exception:
                self.log.exception("on_refusal failed", extra=log_fields(environ))

    def submit(self, work: Callable[[WSGIEnvironment, str], None], environ: WSGIEnvironment, persistence: str) -> None:
        """Run `work` on a thread of the pool, which is made when the first route needs it."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="route")
        running = self._pool.submit(work, environ, persistence)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def close(self) -> bool:
        """Take no more work for the pool. False when something still runs on it, which cannot be interrupted."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return not any(work.running() for work in tuple(self._running))
