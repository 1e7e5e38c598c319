"""The trace: under which name a request is known, here, to its client and to whoever asked the client.

Two names, both taken from the head and both optional for the client. `X-Request-ID` is one word: taken over when it is
sane, made otherwise, so that every request has one. `traceparent` (W3C Trace Context, level 2, §3.2) places the
request in a trace across services: taken over when it is valid, absent otherwise, because a trace that begins here
would have nobody to collect it.

Owns the two patterns and the making of names. `RequestNames.assign` writes `mlsdm.request_id` (text) and, for a valid
traceparent only, `mlsdm.trace` (a `TraceContext`) into the environ; everything else reads them: the answer echoes them
(`response_lines`), log lines carry them (`log_fields`).

What a client sends ends up in other people's logs and terminals, so sane means: short, and of characters that neither
quote, nor escape, nor break a line. Anything else is not repaired but replaced. Two fields of one name arrive joined
by a comma, which neither pattern admits.

A made name is 16 random hexadecimal digits of this worker and a counter: unique over all workers and their successors,
without asking the kernel for entropy at each request. It is a name and no secret. Rejected: UUIDs (2 µs each, against
0.2 µs, and no more unique).
"""

import re
from collections.abc import Callable
from itertools import count
from os import urandom
from typing import Any, Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.request import ADDRESS, CLIENT, REQUEST_ID, TRACE

REQUEST_ID_LENGTH_MAX: Final = 128  # characters
_SANE = re.compile(rf"[A-Za-z0-9._~+/=:\-]{{1,{REQUEST_ID_LENGTH_MAX}}}")

# Version, trace id, parent id, flags. A later version than 00 may append fields behind a dash (§4.3).
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^,]*)?")
_VERSION_INVALID: Final = "ff"
_NOBODY: Final = "0" * 32
_FLAGS_KNOWN: Final = 0b11  # sampled, random; bits without a meaning must be passed on as zero (§3.2.2.5)


class TraceContext(NamedTuple):
    """Where a request belongs: lower-case hexadecimal, 32, 16 and 2 digits. `span_id` is the one under which this
    service tells of it, 16 digits, where it does (`app.telemetry.spans`); a trace that begins here has no `parent_id`.
    """

    trace_id: str
    parent_id: str
    flags: str
    span_id: str = ""


class RequestNames:
    """Names the requests of one worker."""

    def __init__(self, random: Callable[[int], bytes] = urandom) -> None:
        """`random(n)` returns n random bytes. To be made after the fork, or two workers would give the same names."""
        self._prefix = random(8).hex()
        # Never all zeros, which §3.2.2.4 calls invalid.
        self._span_prefix = f"{int.from_bytes(random(4), 'big') or 1:08x}"
        self._count = count(1)

    def new_id(self) -> str:
        """Return a request id that no other request has."""
        return f"{self._prefix}{next(self._count):08x}"

    def assign(self, environ: WSGIEnvironment) -> None:
        """Write the request's names into its environ, which holds the decoded fields."""
        given = environ.get("HTTP_X_REQUEST_ID")
        environ[REQUEST_ID] = given if given is not None and _SANE.fullmatch(given) else self.new_id()
        parent = environ.get("HTTP_TRACEPARENT")
        if parent is not None and (trace := parse_traceparent(parent)) is not None:
            environ[TRACE] = trace

    def id_from_fields(self, fields: list[tuple[bytes, bytes]]) -> str:
        """Return the id for a request whose fields never became an environ."""
        given = [value.decode("latin-1").rstrip(" \t") for name, value in fields if name.lower() == b"x-request-id"]
        return given[0] if len(given) == 1 and _SANE.fullmatch(given[0]) else self.new_id()

    def response_lines(self, environ: WSGIEnvironment) -> str:
        """Return the lines by which an answer says both names; the span in it is our own (§3.4)."""
        line = f"X-Request-ID: {environ[REQUEST_ID]}\r\n"
        trace: TraceContext | None = environ.get(TRACE)
        if trace is None:
            return line
        span = trace.span_id or f"{self._span_prefix}{next(self._count) & 0xFFFFFFFF:08x}"
        return f"{line}traceparent: 00-{trace.trace_id}-{span}-{trace.flags}\r\n"


def parse_traceparent(traceparent: str) -> TraceContext | None:
    """Read a traceparent; None when it is invalid and must be treated as absent (§4.3)."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == _VERSION_INVALID or (version == "00" and more is not None):
        return None
    if trace_id == _NOBODY or parent_id == _NOBODY[:16]:
        return None
    return TraceContext(trace_id, parent_id, f"{int(flags, 16) & _FLAGS_KNOWN:02x}")


def peer_only_environ(client: tuple[str, int]) -> WSGIEnvironment:
    """Return an environ that names no request, only the peer (address, port), for what is told of a connection."""
    return {"REMOTE_ADDR": client[0], "REMOTE_PORT": str(client[1]), REQUEST_ID: ""}


def log_fields(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return what every log line about a request carries, for `extra`: who asks (the id of a key, or the address), from
    where, and under which names.
    """
    client = environ.get(CLIENT)  # an `app.api.access.gate.Client`, once the gate has let it in
    address = environ.get(ADDRESS, environ["REMOTE_ADDR"])
    members = {
        "client_id": client.id if client else address,
        "address": address,
        "request_id": environ[REQUEST_ID],
    }
    trace: TraceContext | None = environ.get(TRACE)
    if trace is not None:
        members["trace_id"] = trace.trace_id
    return members
