"""The contract between the server and the WSGI application that it serves.

The application must be callable as PEP 3333 describes it. The hooks are optional: `hooks_of` looks them up by name
after `open` has run, and uses the defaults of `Hooks` for those that the application does not have.
"""

from asyncio import Future
from collections.abc import Callable, Container, Iterable
from typing import Final, NamedTuple, Protocol, TypeAlias
from wsgiref.types import StartResponse, WSGIEnvironment

# How a request is answered. A fifth way, a deferred answer, needs no constant: the application chooses it by what it
# returns. A call on the loop (INLINE) may return an `asyncio.Future` of its chunks, without a call of start_response.
# The application calls start_response before the future is done; an exception of the future is answered as if the
# application had raised it. The requests behind it on the same connection wait. The server cancels the future when the
# client leaves, which includes that it shuts its side of the connection, and when a worker that drains has no more
# time; then no answer is sent. The application has to limit how many futures wait, and how long. On the pool a future
# is an error.
INLINE: Final = 0  # on the loop, at once
POOL: Final = 1  # on the thread pool: the route may block
# On the loop, in pieces. The application refuses what it has to refuse, then returns a generator. The server takes one
# piece from it in each turn of the loop; a piece should take no more than a quarter of a millisecond.
IN_PIECES: Final = 2
# On the loop, for what takes about a millisecond and cannot be divided: at once while the turn of the loop is short,
# else in the fair queue. It may do all that a call INLINE may do.
IN_TURN: Final = 3

Chunks: TypeAlias = Iterable[bytes]
OnWritten: TypeAlias = Callable[[WSGIEnvironment], object]


class WsgiApplication(Protocol):
    """A WSGI application (PEP 3333), which may also defer its answer."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse, /) -> Chunks | Future[Chunks]: ...


class LifecycleHooks(Protocol):
    """The hooks by which an application follows the life of its worker. Each is optional."""

    def open(self, worker: object) -> None:
        """Called after the fork, before any other hook is looked up. May set `worker.occupancy`."""

    def on_beat(self) -> None:
        """Called four times a second."""

    def close(self) -> None:
        """Called after the last request."""


def _inline(_method: str, _path: str) -> int:
    return INLINE


def _wanted(_environ: WSGIEnvironment) -> bool:
    return True


def _unreported(_code: str, _environ: WSGIEnvironment, _status: int) -> None:
    """Ignore a refusal."""


def _uncounted(_environ: WSGIEnvironment, _status: str) -> None:
    """Ignore an answer."""


def _routeless(_path: str) -> None:
    """Return None: the application has no route templates."""


class Hooks(NamedTuple):
    """The hooks of one application that a worker calls while it serves requests."""

    #: Called in place of the application itself, to save one call per request.
    serve: WsgiApplication
    #: Paths that are answered INLINE whatever the method. `way_of` is asked about all others.
    inline: Container[str] = frozenset()
    #: `(method, path)` → INLINE, POOL, IN_PIECES or IN_TURN.
    way_of: Callable[[str, str], int] = _inline
    #: Paths whose large answers are sent in gzip to clients that accept it. The application may add to it at any time.
    compressed: Container[str] = frozenset()
    #: Paths that are answered even above the cap of connections: probes and metrics, by which the server is judged.
    probes: Container[str] = frozenset()
    #: `(environ)` → whether the server should read a body that is large, or that the client holds back (Expect:
    #: 100-continue). Called before the body arrives. After False the application is called with an empty body, and
    #: answers why it does not want the real one.
    wants_body: Callable[[WSGIEnvironment], bool] = _wanted
    #: `(code, environ, status)`, called when a connection has exceeded a limit or broken a rule, and when a request met
    #: an unexpected error. From any thread. May set REFUSAL_LINES in the environ. See `WorkerState.report_refusal`.
    on_refusal: Callable[[str, WSGIEnvironment, int], object] = _unreported
    #: `(environ, status)`, called when an answer is about to be written, even one that no route has made. The result,
    #: unless it is None, is called with the same environ after the write.
    on_answer: Callable[[WSGIEnvironment, str], OnWritten | None] = _uncounted
    #: `(path)` → the template of its route, or None. Used for log lines.
    route_of: Callable[[str], str | None] = _routeless
    #: The share of the successful requests that get a log line at level DEBUG.
    request_sample_ratio: float = 1.0
    #: (name, value) of the fields that every answer carries in addition to, or in place of, the server's own defaults.
    default_headers: Iterable[tuple[str, str]] = ()


def hooks_of(application: WsgiApplication) -> Hooks:
    """Return the hooks that `application` has, with the defaults for those that it does not have."""
    found = {name: getattr(application, name) for name in Hooks._fields if hasattr(application, name)}
    return Hooks(**{"serve": application, **found})
