"""The deadlines of one connection, checked four times a second by `app.httpd.deadline_sweep`.

Deadlines are absolute, so a client that sends one byte a second is disconnected like one that sends none. There
are deadlines for the silence between requests, for a head (from its first byte), for a body (from the end of its head),
for answers (until the kernel has accepted them), and for lingering. Only the one for answers is moved by progress
(`app.httpd.write_buffer`): a client can send smaller bodies, but cannot ask for a smaller answer. While a request waits
for the server, only the write deadline runs.

Which state has which deadline: the table in `app.httpd.connection_state`. Times are in seconds on the worker's clock.
"""

from typing import Final, Protocol

from app.httpd.connection_state import LINGERING, READY
from app.httpd.deadline_sweep import SweptConnection
from app.httpd.refusal import Refusal
from app.httpd.request_parser import BODY, HEAD, IDLE, RequestParser
from app.httpd.worker_state import WorkerState
from app.httpd.write_buffer import WriteBuffer
from core.limits import (
    BODY_SECONDS,
    HEADERS_SECONDS,
    IDLE_SECONDS,
    KEEPALIVE_SECONDS,
    LINGER_SECONDS,
    WRITE_SECONDS,
    Limit,
)

#: phase of the request that is being read → seconds that its client has
PHASE_SECONDS: Final = {IDLE: KEEPALIVE_SECONDS.value, HEAD: HEADERS_SECONDS.value, BODY: BODY_SECONDS.value}
_IDLE_LEFT_SECONDS: Final = KEEPALIVE_SECONDS.value - IDLE_SECONDS.value


class TimedConnection(SweptConnection, Protocol):
    """What the deadlines need of a connection (`app.httpd.connection.Connection`)."""

    deadline: float
    parser: RequestParser
    state: int
    worker: WorkerState
    writer: WriteBuffer

    def report_limit(self, limit: Limit, what: str) -> None:
        """Report that a limit was exceeded, without telling the client."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer with a problem document, and close."""

    def close(self) -> None:
        """Close without lingering."""

    def abort(self, limit: Limit, what: str) -> None:
        """Close at once and report the limit."""

    def abort_reading(self, limit: Limit, what: str) -> None:
        """Like `abort`, for a peer that has not read its answers; logs how it was reading them."""


def check_deadlines(connection: TimedConnection) -> bool:
    """Close `connection` when one of its deadlines is over, and tell the sweep when it is idle.

    Returns True when it was closed, which takes a hundred times as long as a check that finds no deadline over.
    """
    worker = connection.worker
    now, state = worker.now, connection.state
    exceeded = connection.writer.check_deadline(now)
    if exceeded is WRITE_SECONDS:
        connection.abort_reading(exceeded, "The peer did not take its answer in time and is disconnected")
        return True
    if exceeded is not None:
        connection.report_limit(exceeded, "The peer does not take its answers and gets no more until it does")
    if state == LINGERING:
        if connection.writer.pending_size:
            connection.deadline = now + LINGER_SECONDS.value
        elif now > connection.deadline:
            connection.abort(LINGER_SECONDS, "The peer did not close after its last answer and is disconnected")
            return True
    elif state != READY:
        connection.deadline = now + PHASE_SECONDS[connection.parser.phase]
    elif now > connection.deadline:
        _expire(connection)
        return True
    elif is_idle(connection):
        if worker.draining:
            connection.close()
        else:
            worker.deadline_sweep.add_idle(connection)
    return False


def is_idle(connection: TimedConnection) -> bool:
    """Return whether nothing has been under way for IDLE_SECONDS.

    Not sooner, because the next request of a busy client may be on its way.
    """
    if connection.state != READY or connection.parser.phase != IDLE:
        return False
    return connection.deadline - connection.worker.now <= _IDLE_LEFT_SECONDS and not connection.writer.pending_size


def close_if_idle(connection: TimedConnection) -> bool:
    """Close `connection` to make room for a new one, if it is idle; returns whether it was closed.

    RFC 9112 §9.5: either side may end an idle connection at any time.
    """
    if not is_idle(connection):
        return False
    connection.report_limit(IDLE_SECONDS, "The connection was idle and made room for a new one")
    connection.close()
    return True


def _expire(connection: TimedConnection) -> None:
    phase = connection.parser.phase
    if phase == IDLE:
        connection.report_limit(KEEPALIVE_SECONDS, "The connection was silent and is closed")
        connection.close()
        return
    limit = HEADERS_SECONDS if phase == HEAD else BODY_SECONDS
    part = "head" if phase == HEAD else "body"
    detail = f"The {part} of the request took more than {limit.value} {limit.unit} (RFC 9110 §15.5.9)."
    connection.refuse(Refusal(limit.status, limit.code, detail))
