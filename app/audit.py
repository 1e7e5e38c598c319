"""The audit log: who tried what, from where, and was refused; and who changed what governs this server.

One JSON object a line, whatever the format and level of the other log: `event` names what happened, `client_id` who (a
key's id, or an address), `address` from where, `request_id` which request, `code` why. Never a credential, a body or a
vector; text of a client is bounded, and control characters are escaped by JSON.

A flood of refusals must not become a flood of lines: of each kind at most LINES_PER_SECOND are written a second, in
each worker, and a line of their own says how many were `suppressed`, at the latest when the worker ends. Every one is
counted all the same (`mlsdm_refusals_total`). What changed the server, or may have, is always written: only an
administrator can do that.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

from app.auth import Client

LINES_PER_SECOND: Final = 20
TEXT_LENGTH_MAX: Final = 200  # characters

# What a refusal is called; statuses that are nobody's fault, or no danger, are not audited.
_EVENTS: Final = {401: "auth_failure", 403: "access_denied", 429: "rate_limit_exceeded"}
_HARMLESS: Final = frozenset({404, 405, 410})

log = logging.getLogger("mlsdm.audit")


class Audit:
    """Writes the audit log of one worker. `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # routes on the pool write, too
        self._second = 0
        self._written: dict[str, int] = {}
        self._suppressed: dict[str, int] = {}

    def refused(self, environ: WSGIEnvironment, status: int, code: str, field: str | None = None) -> None:
        """Note that a request was refused with `status` and `code`, `field` being to blame. Of a request that was not
        read to its end `environ` holds what was.
        """
        if event := _event_of(status):
            ours = field and code != "field_unknown"  # the name of an unknown one is a piece of the body
            self._refuse(event, **_about(environ), status=status, code=code, **({"field": field} if ours else {}))

    def note(self, event: str, environ: WSGIEnvironment, **members: Any) -> None:
        """Note what a request has changed, or may have."""
        log.warning(event, extra={**_about(environ), **members})

    def _refuse(self, event: str, **members: Any) -> None:
        """Write one line, unless this second has had its lines of this event."""
        with self._lock:
            self._turn()
            written = self._written.get(event, 0)
            if written >= LINES_PER_SECOND:
                self._suppressed[event] = self._suppressed.get(event, 0) + 1
                return
            self._written[event] = written + 1
        log.warning(event, extra=members)

    def flush(self) -> None:
        """Say how many lines the last second has cost, once it is over. To be called a few times a second."""
        if self._suppressed:
            with self._lock:
                self._turn()

    def close(self) -> None:
        """Say how many lines this second has cost so far: after the last request, because nobody would say it later."""
        with self._lock:
            self._tell()

    def _turn(self) -> None:
        """Begin a new second when it is time."""
        second = int(self._clock())
        if second == self._second:
            return
        self._second = second
        self._written.clear()
        self._tell()

    def _tell(self) -> None:
        for event, suppressed in self._suppressed.items():
            log.warning(event, extra={"suppressed": suppressed})
        self._suppressed.clear()


def _about(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return who asked for what, from where."""
    client: Client | None = environ.get("mlsdm.client")
    address = environ.get("mlsdm.address", environ["REMOTE_ADDR"])
    trace = environ.get("mlsdm.trace")
    return {
        "client_id": client.id if client else address,
        "address": address,
        "request_id": environ["mlsdm.request_id"],
        **({"trace_id": trace.trace_id} if trace else {}),
        **({"method": environ["REQUEST_METHOD"]} if "REQUEST_METHOD" in environ else {}),
        **({"path": environ["PATH_INFO"][:TEXT_LENGTH_MAX]} if "PATH_INFO" in environ else {}),
    }


def _event_of(status: int) -> str | None:
    """Return what a refusal with `status` is called in the audit log; None when it has no place there."""
    if status in _HARMLESS or not 400 <= status < 500:
        return None
    return _EVENTS.get(status, "invalid_input")
