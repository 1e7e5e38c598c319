"""Audit log: refused requests, and commands that changed the governor. One JSON object per line.

The members are `event` (what happened), `client_id` and `address` (who sent the request, and from where), `request_id`
and `code` (the reason). The format and the level of the other log do not apply.

Invariants: no line contains a credential, a body or a vector. Text that a client sent is bounded, and JSON escapes
control characters. Changes of the governor are always written. In one worker, each kind of refusal gets at most
LINES_PER_SECOND lines a second. Further refusals are summed per client: one more line, at the end of the second, has
the client's `client_id` and `address` and the number of lines that were `suppressed`. So the lines of a client add up
exactly to its refusals. Beyond CLIENTS_COUNT such clients in a second, the rest share a line without a name, so that
strangers with many addresses cannot fill memory or disk. Every refusal is also counted (`mlsdm_refusals_total`).
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.request_names import log_fields

LINES_PER_SECOND: Final = 20
CLIENTS_COUNT: Final = 256  # named clients with suppressed lines in a second, for each kind
TEXT_LENGTH_MAX: Final = 200  # characters

# The event of a refusal, by status; any other status of the 400s is `invalid_input`. Harmless ones are not audited.
_EVENTS: Final = {401: "auth_failure", 403: "access_denied", 429: "rate_limit_exceeded"}
_HARMLESS: Final = frozenset({404, 405, 410})
_INSIDE: Final = re.compile(r"^((?:\[\d+\]\.)?(?:payload|event_vector|vector))[.\[].*", re.DOTALL)

log = logging.getLogger("mlsdm.audit")


class _Client(NamedTuple):
    """A client that was refused."""

    client_id: str
    address: str


_OTHERS: Final = _Client("", "")


class AuditLog:
    """Writes the audit log of one worker. `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # routes on the pool write as well
        self._second = 0
        self._written: dict[str, int] = {}
        self._suppressed: dict[str, dict[_Client, int]] = {}  # by event

    def record_refusal(self, environ: WSGIEnvironment, status: int, code: str, field: str | None = None) -> None:
        """Write a refusal with `status`, `code` and the `field` at fault.

        `environ` holds what is known of the request, which may not have been read to its end.
        """
        if event := _event_of(status):
            # The name of an unknown field is a piece of the body, and so are names in a payload.
            known = {"field": _INSIDE.sub(r"\1", field)} if field and code != "field_unknown" else {}
            self._refuse(event, **_fields(environ), status=status, code=code, **known)

    def record_change(self, event: str, environ: WSGIEnvironment, **members: Any) -> None:
        """Write that a request has changed something, or may have changed it."""
        log.warning(event, extra={**_fields(environ), **members})

    def _refuse(self, event: str, **members: Any) -> None:
        """Write one line, or count it as suppressed if this second has had all its lines of the event."""
        with self._lock:
            self._begin_second()
            written = self._written.get(event, 0)
            if written >= LINES_PER_SECOND:
                clients = self._suppressed.setdefault(event, {})
                client = _Client(members["client_id"], members["address"])
                if client not in clients and len(clients) >= CLIENTS_COUNT:
                    client = _OTHERS
                clients[client] = clients.get(client, 0) + 1
                return
            self._written[event] = written + 1
        log.warning(event, extra=members)

    def flush(self) -> None:
        """Write how many lines were suppressed in the last second, once it is over. Call it a few times a second."""
        if self._suppressed:
            with self._lock:
                self._begin_second()

    def close(self) -> None:
        """Write how many lines were suppressed so far: after the last request."""
        with self._lock:
            self._write_suppressed()

    def _begin_second(self) -> None:
        """Begin a new second if the clock has reached it."""
        second = int(self._clock())
        if second == self._second:
            return
        self._second = second
        self._written.clear()
        self._write_suppressed()

    def _write_suppressed(self) -> None:
        """Write how many lines were suppressed, by event and client."""
        for event, clients in self._suppressed.items():
            for client, suppressed in clients.items():
                who = client._asdict() if client is not _OTHERS else {}
                log.warning(event, extra={**who, "suppressed": suppressed})
        self._suppressed.clear()


def _fields(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return the members of a line that identify client and request."""
    return {
        **log_fields(environ),
        **({"method": environ["REQUEST_METHOD"]} if "REQUEST_METHOD" in environ else {}),
        **({"path": environ["PATH_INFO"][:TEXT_LENGTH_MAX]} if "PATH_INFO" in environ else {}),
    }


def _event_of(status: int) -> str | None:
    """Return the event of a refusal with `status`; None if it is not audited."""
    if status in _HARMLESS or not 400 <= status < 500:
        return None
    return _EVENTS.get(status, "invalid_input")
