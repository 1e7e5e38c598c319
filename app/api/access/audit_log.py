"""The audit log: who tried what, from where, and was refused; and who changed what governs this server.

One JSON object a line, whatever the format and level of the other log: `event` names what happened, `client_id` who (a
key's id, or an address), `address` from where, `request_id` which request, `code` why. Never a credential, a body or a
vector; text of a client is bounded, and control characters are escaped by JSON.

Nothing is sampled, and a flood of refusals does not become a flood of lines all the same: of each kind at most
LINES_PER_SECOND have a line of their own a second, in each worker. Of each client that was refused more often, one line
more says how often: its `client_id`, its `address`, and how many lines were `suppressed`; the second is over then, or
the worker ends. So who asks too often is always named, and the lines of a client add up to its refusals exactly. Beyond
CLIENTS_COUNT such clients in a second the rest share a line without a name: strangers with many addresses must not fill
memory or disk. Every refusal is counted as well (`mlsdm_refusals_total`). What changed the server, or may have, is
always written: only an administrator can do that.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.request_names import log_fields

LINES_PER_SECOND: Final = 20
CLIENTS_COUNT: Final = 256  # that are told of by name in a second, of each kind
TEXT_LENGTH_MAX: Final = 200  # characters

# What a refusal is called; statuses that are nobody's fault, or no danger, are not audited.
_EVENTS: Final = {401: "auth_failure", 403: "access_denied", 429: "rate_limit_exceeded"}
_HARMLESS: Final = frozenset({404, 405, 410})

log = logging.getLogger("mlsdm.audit")


class _Client(NamedTuple):
    """Who was refused."""

    client_id: str
    address: str


_OTHERS: Final = _Client("", "")


class AuditLog:
    """Writes the audit log of one worker. `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # routes on the pool write, too
        self._second = 0
        self._written: dict[str, int] = {}
        self._suppressed: dict[str, dict[_Client, int]] = {}  # by event

    def record_refusal(self, environ: WSGIEnvironment, status: int, code: str, field: str | None = None) -> None:
        """Note that a request was refused with `status` and `code`, `field` being to blame. Of a request that was not
        read to its end `environ` holds what was.
        """
        if event := _event_of(status):
            ours = field and code != "field_unknown"  # the name of an unknown one is a piece of the body
            self._refuse(event, **_about(environ), status=status, code=code, **({"field": field} if ours else {}))

    def record_change(self, event: str, environ: WSGIEnvironment, **members: Any) -> None:
        """Note what a request has changed, or may have."""
        log.warning(event, extra={**_about(environ), **members})

    def _refuse(self, event: str, **members: Any) -> None:
        """Write one line, unless this second has had its lines of this event."""
        with self._lock:
            self._turn()
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
        for event, clients in self._suppressed.items():
            for client, suppressed in clients.items():
                who = client._asdict() if client is not _OTHERS else {}
                log.warning(event, extra={**who, "suppressed": suppressed})
        self._suppressed.clear()


def _about(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return who asked for what, from where."""
    return {
        **log_fields(environ),
        **({"method": environ["REQUEST_METHOD"]} if "REQUEST_METHOD" in environ else {}),
        **({"path": environ["PATH_INFO"][:TEXT_LENGTH_MAX]} if "PATH_INFO" in environ else {}),
    }


def _event_of(status: int) -> str | None:
    """Return what a refusal with `status` is called in the audit log; None when it has no place there."""
    if status in _HARMLESS or not 400 <= status < 500:
        return None
    return _EVENTS.get(status, "invalid_input")
