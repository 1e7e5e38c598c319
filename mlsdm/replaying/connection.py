"""A small HTTP client of the server: one keep-alive connection, raw float32 in, decisions out.

Owns: the octet-stream forms of POST /event and /events, GET /state, problem documents (RFC 9457), Retry-After.
Threading: one connection belongs to one thread; only `abort` may be called from another.

Each event has an idempotency key, so a request whose answer was lost is sent again, up to LOST_MAX times. Failures:
- 429 or 503: nothing was applied. Wait as the server asks, and send again within the `RetryBudget`.
- 503 `batch_interrupted`: the first events were decided; their decisions are returned and the caller sends the rest.
- `RefusedError`: nothing was applied; no connection, or another status below 500.
- `OutcomeUnknownError`: the request was sent, and neither it nor its repetitions got a usable answer.

Perf: head and body leave in one `sendall`. http.client's request methods write them apart: two packets, two wake-ups.
"""

import contextlib
import email.utils
import http.client
import json
import select
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from mlsdm import server_url

ATTEMPTS_MAX: Final = 10  # refusals per connection, with no success on any of them, before a replay gives up
WAIT_SECONDS_MAX: Final = 60.0  # a server that asks for more is not throttling, it is unavailable
RETRY_AFTER_DEFAULT_SECONDS: Final = 1.0  # when 429 or 503 carries no usable Retry-After
ANSWER_SECONDS_MAX: Final = 30.0  # timeout of a connect or an answer
LOST_MAX: Final = 3  # lost answers in a row for one request before it fails
LOST_SECONDS: Final = 0.2  # pause before a resend: longer than the replacement of a worker
BATCH_INTERRUPTED: Final = "batch_interrupted"
NO_MEMORY: Final = -1  # memory_id of a rejected event; the server's ids are never negative


class ClientError(Exception):
    """One sentence for the operator: what failed, where, and what to do about it."""


class RefusedError(ClientError):
    """The request was not applied."""


class OutcomeUnknownError(ClientError):
    """The request was sent, and it is not known whether it was applied."""


class AnswerLostError(OutcomeUnknownError):
    """The connection ended before the answer did, as when a worker dies."""


class Stopped(Exception):
    """Stopped while waiting to send again. Not an error; the request was not applied."""


class Decision(NamedTuple):
    """The server's decision on one event. `memory_id` is NO_MEMORY when the event was rejected."""

    sequence: int
    accepted: bool
    threshold_before: float
    threshold_after: float
    ema: float
    memory_id: int


class State(NamedTuple):
    """The counters of GET /state that a replay is compared with, and the boot they belong to."""

    total: int
    accepted: int
    rejected: int
    boot_id: str


class Answer(NamedTuple):
    """A whole response. `seconds` runs from the first byte written to the last byte read, waits to retry excluded."""

    status: int
    reason: str
    retry_after: str | None
    content: bytes
    seconds: float


class Connection:
    """One keep-alive connection to the server at `url`, opened when first needed.

    `url` is http:// or https://, with an optional port and path prefix. Raises RefusedError for a URL or key that
    cannot be used.
    """

    def __init__(
        self, url: str, api_key: str | None, retry_budget: "RetryBudget", timeout: float = ANSWER_SECONDS_MAX
    ) -> None:
        try:
            parts = server_url.parse(url)
        except server_url.InvalidUrl as error:
            raise RefusedError(str(error)) from error
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise RefusedError(
                "the API key contains characters that an HTTP header cannot carry: expected printable ASCII"
            )
        assert parts.hostname is not None
        connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = connection(parts.hostname, parts.port, timeout=timeout)
        self._timeout = timeout
        self._retry_budget = retry_budget
        self._prefix = parts.path.rstrip("/")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._fields = (
            f" HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: mlsdm-replay\r\nAccept: application/json\r\n"
            + (f"Authorization: Bearer {api_key}\r\n" if api_key else "")
        )

    def decide(self, moral_value: float, vector: memoryview) -> tuple[list[Decision], float]:
        """Send one event to POST /event; return its decision (a list of one) and the latency in seconds.

        `vector` is the bytes of float32[D], little-endian. The moral value is written with repr, which reads back
        exactly.
        """
        fields = f"Moral-Value: {moral_value!r}\r\n"
        answer = self._send_until_decided("POST", "/event", fields + _idempotency_field(), vector)
        return [_decision(_json(answer, "POST /event"), "POST /event")], answer.seconds

    def decide_batch(self, count: int, morals: memoryview, vectors: memoryview) -> tuple[list[Decision], float]:
        """Send `count` events to POST /events; return the decisions, in order, and the latency in seconds.

        When the server was interrupted, there are fewer than `count`, at least one; the other events were not applied.
        `morals` is the bytes of float64[count], `vectors` of float32[count, D], both little-endian.
        """
        answer = self._send_until_decided(
            "POST", "/events", f"Event-Count: {count}\r\n{_idempotency_field()}", morals, vectors
        )
        results = _json(answer, "POST /events").get("results")
        wanted = range(count, count + 1) if answer.status == 200 else range(1, count)
        if not isinstance(results, list) or len(results) not in wanted:
            raise OutcomeUnknownError(f"POST /events was answered without one result for each of its {count} events")
        return [_decision(result, "POST /events") for result in results], answer.seconds

    def state(self) -> State:
        """Return the counters of GET /state. Raises RefusedError when the answer is not that of an mlsdm server."""
        where = f"{self._origin}{self._prefix}/state"
        document = _json(self._send_until_decided("GET", "/state", ""), f"GET {where}")
        try:
            return State(
                int(document["total_events_processed"]),
                int(document["accepted_events_count"]),
                int(document["latent_events_count"]),
                str(document["boot_id"]),
            )
        except (KeyError, TypeError, ValueError):
            raise RefusedError(f"{where} did not answer with the state of an mlsdm server: check --url") from None

    def close(self) -> None:
        self._http.close()

    def abort(self) -> None:
        """Make a blocked read or write of this connection fail at once; for other threads."""
        sock: socket.socket | None = self._http.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _send_until_decided(self, method: str, path: str, fields: str, *body: memoryview) -> Answer:
        """Send until the answer is neither 429 nor 503; return it when it has decisions (200, or part of a batch)."""
        size = sum(part.nbytes for part in body)
        framing = f"Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n" if body else ""
        head = f"{method} {self._prefix}{path}{self._fields}{fields}{framing}\r\n".encode("ascii")
        request = b"".join((head, *body))
        what = f"{method} {path}"
        lost = 0
        while True:
            try:
                answer = self._exchange(method, what, request)
            except AnswerLostError as error:
                lost += 1
                if lost > LOST_MAX or self._retry_budget.stopped:
                    raise
                self._retry_budget.pause(LOST_SECONDS)
                unknown = error
                continue
            except RefusedError as error:
                if lost:  # it may have been applied before the server became unreachable
                    raise unknown from error
                raise
            if answer.status == 200 or (answer.status == 503 and _problem(answer).get("code") == BATCH_INTERRUPTED):
                self._retry_budget.reset()
                return answer
            if answer.status not in (429, 503):
                raise _error_of(answer, what)
            self._retry_budget.wait(_error_of(answer, what), _retry_after_seconds(answer.retry_after))

    def _exchange(self, method: str, what: str, request: bytes) -> Answer:
        sock = self._open()
        began = time.perf_counter()
        try:
            # A server that refuses early (413) may close before it has read the body; its answer is still readable.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(request)
            response = http.client.HTTPResponse(sock, method=method)
            response.begin()
            content = response.read()
        except TimeoutError:
            self.close()
            raise OutcomeUnknownError(f"{self._origin} did not answer {what} within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            ended = isinstance(error, (OSError, http.client.IncompleteRead))
            raise (AnswerLostError if ended else OutcomeUnknownError)(
                f"the connection to {self._origin} broke during {what} ({_cause(error)})"
            ) from None
        seconds = time.perf_counter() - began
        if response.will_close:
            self.close()
        return Answer(response.status, response.reason, response.getheader("Retry-After"), content, seconds)

    def _open(self) -> socket.socket:
        """Return a connected socket; replace one that the server has closed: it is readable before a request."""
        sock: socket.socket | None = self._http.sock
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self.close()
            sock = None
        if sock is None:
            try:
                self._http.connect()
            except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
                raise RefusedError(
                    f"cannot connect to {self._origin} ({_cause(error)}): is the server running?"
                ) from None
            sock = self._http.sock
            assert sock is not None
        return sock


class RetryBudget:
    """The number of refusals that all connections of a replay may get before it fails, and the waits between them.

    It counts refusals since the last success of any connection. A limit per request would fail a healthy replay: when
    more clients than tokens compete for a rate limit, some requests are refused ten times in a row.
    """

    def __init__(self, connections: int, stop: threading.Event) -> None:
        self.waits = 0
        self.waited_seconds = 0.0  # summed over the connections
        self._refusals_max = ATTEMPTS_MAX * connections
        self._refusals = 0
        self._stop = stop
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait before resending a request whose answer was lost; returns early when stopped."""
        self._stop.wait(seconds)

    def reset(self) -> None:
        """Reset the count of refusals after a success."""
        self._refusals = 0

    def wait(self, refusal: ClientError, seconds: float) -> None:
        """Wait as long as the server asked. Raises RefusedError when the budget is spent, Stopped when stopped."""
        if seconds > WAIT_SECONDS_MAX:
            raise RefusedError(
                f"{refusal}; it asks to wait {seconds:.0f} s, more than the maximum of {WAIT_SECONDS_MAX:.0f} s"
            )
        with self._lock:
            self._refusals += 1
            if self._refusals >= self._refusals_max:
                raise RefusedError(f"{refusal}; gave up after {self._refusals} refusals in a row")
            self.waits += 1
            self.waited_seconds += seconds
        if self._stop.wait(seconds):
            raise Stopped


def _idempotency_field() -> str:
    return f"Idempotency-Key: {uuid.uuid4().hex}\r\n"


def _error_of(answer: Answer, what: str) -> ClientError:
    """Return an answer as an error: code and detail of its problem document, or else its status line."""
    problem = _problem(answer)
    sentence = f"{what} was answered {answer.status} {problem.get('code') or problem.get('title') or answer.reason}"
    sentence += f": {problem['detail']}" if problem.get("detail") else ""
    if answer.status == 401:
        sentence += " (give the key with --api-key or the variable API_KEY)"
    if answer.status == 404:
        sentence += " (is --url the address of an mlsdm server?)"
    # 500, 502 and 504 may come after the event was applied; a 503 of this server never does.
    return OutcomeUnknownError(sentence) if answer.status >= 500 and answer.status != 503 else RefusedError(sentence)


def _problem(answer: Answer) -> dict[str, Any]:
    """Return the members of its problem document, or nothing for another body, such as a proxy's page."""
    try:
        document = json.loads(answer.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after_seconds(value: str | None) -> float:
    """Return Retry-After in seconds: a whole number or an HTTP-date (RFC 9110 §10.2.3)."""
    if value is None:
        return RETRY_AFTER_DEFAULT_SECONDS
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return RETRY_AFTER_DEFAULT_SECONDS
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _json(answer: Answer, what: str) -> dict[str, Any]:
    try:
        document = json.loads(answer.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise OutcomeUnknownError(f"{what} was answered with something other than a JSON object: check --url")
    return document


def _decision(result: Mapping[str, Any], what: str) -> Decision:
    try:
        return Decision(
            int(result["sequence"]),
            bool(result["accepted"]),
            float(result["threshold_before"]),
            float(result["moral_filter_threshold"]),
            float(result["ema"]),
            int(result["memory_id"]) if result["accepted"] else NO_MEMORY,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OutcomeUnknownError(
            f"{what} was answered with a decision that cannot be read ({_cause(error)})"
        ) from None


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
