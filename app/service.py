"""The service: what all connections of one worker share.

Owns the application, the clock of the deadlines, the lines that all answers share (Date, the standing headers), the
names of requests, the counts (requests served, refusals by code, bytes of bodies and pipelines in memory), the lines
in which connections wait for their turn, and the small thread pool for the few routes that may block. The worker makes
one after the fork and ticks it; connections read it on every request, which is why its fields are plain attributes.
Everything runs on the loop's thread, so nothing here is locked.

Turns. What a connection has sent ahead of its answers stands in one line with what all the others have: each does one
thing (an answer, or the parsing of a small slice) and goes to the end of the line, for TURN_SECONDS or TURN_COUNT
things in a turn of the loop; then the loop looks at its sockets again. So whoever sends one request at a time waits
for a millisecond of other people's pipelines, not for all of them. Long answers have a line of their own, because
their order is another: first come, first served, and slowly (`in_pieces`).

The clock is patient: a tick advances it by at most `TICK_SECONDS_MAX`, however much time has passed. When the
container is throttled or a request held the loop, the bytes that clients sent in time are still in the kernel; with
the real clock their deadlines would be over before they are read. Rejected: a timer per request (two heap operations
and a callback for something that all but never fires).
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import formatdate
from logging import DEBUG, Logger
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol
from wsgiref.types import StartResponse, WSGIEnvironment

from app.framing import Refusal
from app.standing import Standing
from app.trace import Tracer
from core.limits import ANSWERS_SIZE, BODIES_SIZE, PIPELINES_SIZE

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.connection import Connection

# How a request is answered.
INLINE: Final = 0
POOL: Final = 1
IN_PIECES: Final = 2

POOL_THREADS: Final = 2
# Between two pieces of long answers while several are under way: with pieces of 0.25 ms, a fifth of the loop's time.
PIECE_SECONDS: Final = 0.001
# Of pipelines in one turn of the loop, whichever is reached first; the last thing begun is finished.
TURN_SECONDS: Final = 0.001
TURN_COUNT: Final = 16
TICK_SECONDS_MAX: Final = 0.5
SWEEP_COUNT: Final = 64  # connections that look at their deadlines in one turn of the loop
SWEEP_ENDED_COUNT: Final = 4  # or that are ended
_idle_until: Final = attrgetter("idle_until")
_NOBODY: Final = {"request_id": ""}  # what a refusal names when no request is to blame


class Application(Protocol):
    """A WSGI application. It may add the members below; a worker looks for them by name, before it calls `open`, and
    does without.

    `may_block(method, path) -> int`: INLINE (or False) answers the request on the loop, POOL (or True) on the thread
    pool, IN_PIECES on the loop, in its turn, when its answer takes long to make: the application should then return a
    generator, and is asked for one piece in each turn of the loop, of no more than a quarter of a millisecond.
    `wants_body(environ) -> bool`: whether a body is wanted that the client holds back (Expect: 100-continue), or that
    is large. Called before there is one; after False the application is called with an empty body, to say why not.
    `on_refusal(code, client, request_id, detail, status)`: whenever a connection passed a limit or broke a rule; see
    `Service.refused`.
    `standing_headers`, pairs of name and value: what all answers carry, see `app.standing`.
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
        self.may_block: Callable[[str, str], int] | None = getattr(application, "may_block", None)
        self.wants_body: Callable[[WSGIEnvironment], bool] | None = getattr(application, "wants_body", None)
        self._on_refusal: Callable[[str, tuple[str, int], str, str, int], object] | None = getattr(
            application, "on_refusal", None
        )
        self.standing = Standing(getattr(application, "standing_headers", ()), secure=scheme == "https")
        self.tracer = Tracer()
        self.loop = loop
        self.log = log
        self.verbose = log.isEnabledFor(DEBUG)  # each request has a log line
        self.scheme = scheme
        self.connections: set[Connection] = set()
        self.draining = False  # every answer from now on carries Connection: close
        self.served = 0  # requests handed to the application
        self.served_max = served_max
        self.retire = retire
        self.lost: Callable[[], None] = lambda: None  # called for each connection that ends; whoever accepts sets it
        self.refusals: Counter[str] = Counter()  # by the code of the limit or guard that was passed
        self.bodies_size = 0  # bytes of large bodies in memory, bounded by BODIES_SIZE
        self.pipelines_size = 0  # bytes sent ahead of their answers, bounded by PIPELINES_SIZE
        self.now = 0.0  # seconds, patient, arbitrary origin
        self.date = ""
        self._clock, self._wall = clock, wall
        self._ticked = clock()
        self._second = 0
        self.idle_found: list[Connection] = []  # by the round that is under way
        self._idle: list[Connection] = []  # by the last one that ended
        self._idle_sorted = True  # the longest last
        self._unswept: list[Connection] = []
        # Whose answers come in pieces; the first one's is under way. A dict cannot be emptied from its front in O(1).
        self._making: OrderedDict[Connection, None] = OrderedDict()
        self._piece_due = False
        self._line: OrderedDict[Connection, None] = OrderedDict()  # who has something to do, the next one first
        self._turn_due = False
        self.untaken_size = 0  # bytes of answers in the write buffers of slow readers
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
        """Begin a round in which every connection looks at its deadlines, unless the last one is still under way."""
        if not self._unswept:
            self._unswept = list(self.connections)
            self.idle_found = []
            self._sweep_some()

    def _sweep_some(self) -> None:
        """PERF: 0.5 µs a connection, 50 to 100 if it is ended. In one go 5,000 of them would hold every request up for
        2.5 ms and more, four times a second; so a few have their turn, then whatever came in meanwhile.
        """
        unswept = self._unswept
        left = SWEEP_COUNT
        try:
            while unswept and left > 0:
                connection = unswept.pop()
                if connection in self.connections:
                    left -= SWEEP_COUNT // SWEEP_ENDED_COUNT if connection.sweep() else 1
        finally:  # one that fails must not keep the others from ending
            if unswept:
                self.loop.call_soon(self._sweep_some)
            else:
                self._idle, self._idle_sorted = self.idle_found, False

    def make_room(self) -> bool:
        """Close the connection that has been idle longest; False when none has been idle for long enough.

        The candidates are those of the last round, sorted when the first of them is needed, so that a new connection
        costs the removal of one from a list.
        """
        if not self._idle_sorted:
            self._idle.sort(key=_idle_until, reverse=True)
            self._idle_sorted = True
        while self._idle:
            if self._idle.pop().make_room():
                return True
        return False

    def refused(
        self, code: str, client: tuple[str, int], detail: str, *, status: int = 0, names: Mapping[str, str] = _NOBODY
    ) -> None:
        """Count one refusal, log it at DEBUG, and tell the application; never raises.

        `code` is the name of the limit or guard, `client` the peer's (address, port); `status` is what the client is
        told, 0 when nothing: its connection is closed, or read no further, without a word. `names` are those of the
        request (`app.trace.about`); the id is empty when there is no request to name.
        """
        self.refusals[code] += 1
        if self.verbose:
            extra = {"client": f"{client[0]}:{client[1]}", "code": code, "status": status, **names}
            self.log.debug("Refused: %s", detail, extra=extra)
        if self._on_refusal is not None:
            try:
                self._on_refusal(code, client, names["request_id"], detail, status)
            except Exception:
                self.log.exception("on_refusal failed", extra={"client": f"{client[0]}:{client[1]}", **names})

    def reserve(self, size: int) -> None:
        """Set `size` bytes aside for a large body. Raises Refusal (503) rather than let clients fill the memory
        together.
        """
        if self.bodies_size + size > BODIES_SIZE.value:
            detail = f"This worker already holds {self.bodies_size} bytes of request bodies; try again in a second."
            raise Refusal(BODIES_SIZE.status, BODIES_SIZE.code, detail, retry_after=1)
        self.bodies_size += size

    def keep(self, size: int) -> None:
        """Account for `size` bytes that a client sent ahead of its answers. Raises Refusal (503) as `reserve` does."""
        if self.pipelines_size + size > PIPELINES_SIZE.value:
            detail = f"This worker already holds {self.pipelines_size} bytes of pipelined requests; send one at a time."
            raise Refusal(PIPELINES_SIZE.status, PIPELINES_SIZE.code, detail, retry_after=1)
        self.pipelines_size += size

    def line_up(self, connection: "Connection") -> None:
        """Let `connection` have its turns (`Connection.turn`) until it says that nothing is left to do."""
        self._line[connection] = None
        if not self._turn_due:
            self._turn_due = True
            self.loop.call_soon(self._take_turns)

    def _take_turns(self) -> None:
        line, left, end = self._line, TURN_COUNT, self._clock() + TURN_SECONDS
        try:
            while line and left:
                connection, _ = line.popitem(last=False)
                if connection.turn():
                    line[connection] = None
                left = left - 1 if self._clock() < end else 0
        finally:
            self._turn_due = bool(line)
            if line:
                self.loop.call_soon(self._take_turns)

    def in_pieces(self, connection: "Connection") -> None:
        """Have `connection` make a long answer, a piece in each turn of the loop.

        First come, first served, so that one answer at a time is half made; slowly while others wait, because a
        thousand of them are an attack, and what is asked for beside them must not wait for a thousand answers; and not
        at all while readers leave too many bytes of such answers untaken.
        """
        self._making[connection] = None
        self._schedule_piece()

    def not_in_pieces(self, connection: "Connection") -> None:
        """Forget a connection that has ended."""
        self._making.pop(connection, None)

    def untaken(self, change: int, client: tuple[str, int]) -> None:
        """Account for `change` bytes more, or less, that wait for a reader, `client`, who is slow to take them."""
        before, limit = self.untaken_size, ANSWERS_SIZE
        self.untaken_size += change
        if before <= limit.value < self.untaken_size:
            self.refused(limit.code, client, f"Readers leave more than {limit.value} {limit.unit}; long answers wait.")
        self._schedule_piece()

    def _schedule_piece(self) -> None:
        if self._piece_due or not self._making or self.untaken_size > ANSWERS_SIZE.value:
            return
        self._piece_due = True
        if len(self._making) == 1:
            self.loop.call_soon(self._make_piece)
        else:
            self.loop.call_later(PIECE_SECONDS, self._make_piece)

    def _make_piece(self) -> None:
        self._piece_due = False
        try:
            if self._making:
                connection = next(iter(self._making))
                answer = connection.make_piece()
                if answer is not None:
                    del self._making[connection]
                    connection.answered(answer)
        finally:
            self._schedule_piece()

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
