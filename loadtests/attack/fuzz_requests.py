"""A coverage-guided fuzzer for the path from bytes to request and back: request parser, connection, WSGI call.

    pip install atheris
    python -m loadtests.attack.fuzz_requests --minutes 20
    python -m loadtests.attack.fuzz_requests --replay crash-…

An input is a program: a byte below 128 is itself, one above stands for a fragment of HTTP, so that mutations change
syntax. Its last four bytes set the splits and whether the peer reads slowly. `check` holds for every program (the
tests run it, too): only Refusal leaves `RequestParser.feed`; splits do not change requests or refusals; a request
begins where a strict reading of RFC 9112 (`testing.strict_http`) ends the one before, with the same method, version
and body; every written byte is part of one well-formed answer per request; a slow reader gets the same answers; a
repeated head is read the same way.

Exit status: 0 when the time is over, 1 at the first failing input, which libFuzzer saves.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from wsgiref.types import WSGIEnvironment

try:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # only here, and not everywhere
except ImportError:
    atheris = None

if atheris is not None and __name__ == "__main__":
    with atheris.instrument_imports(include=["app", "core"]):
        from app.httpd.connection import Connection
        from app.httpd.head_cache import CachedHead, HeadCache
        from app.httpd.refusal import Refusal
        from app.httpd.request_names import RequestNames
        from app.httpd.request_parser import RequestParser
        from app.httpd.response import CLOSE
        from app.httpd.worker_state import WorkerState
        from app.httpd.wsgi_environ import base_environ
else:
    from app.httpd.connection import Connection
    from app.httpd.head_cache import CachedHead, HeadCache
    from app.httpd.refusal import Refusal
    from app.httpd.request_names import RequestNames
    from app.httpd.request_parser import RequestParser
    from app.httpd.response import CLOSE
    from app.httpd.worker_state import WorkerState
    from app.httpd.wsgi_environ import base_environ

from core.limits import HEADER_COUNT, HEADERS_SIZE, REQUEST_LINE_SIZE
from testing.strict_http import read_answers, read_request

CLIENT: Final = ("127.0.0.1", 4242)
PROGRAM_SIZE_MAX: Final = 96
LIMIT_SIZE: Final = 4_000  # bytes; shorter wires can exceed only the limit on the number of fields
LIMITS: Final = {limit.code for limit in (REQUEST_LINE_SIZE, HEADER_COUNT, HEADERS_SIZE)}

# -- programs --------------------------------------------------------------------------------------------------------

FRAGMENTS: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\n", b"GET ", b"HEAD ", b"POST ", b"OPTIONS ",
    b"CONNECT ", b"PRI ", b"/", b"*", b"/no", b"/a?b=c", b"/%0d%0aX:y", b"/%2e%2e/", b"http://a", b"http://a/b",
    b"#f", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b" HTTP/0.9\r\n", b" RTSP/1.0\r\n", b" HTTP/1.1\n",
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\t", b" ", b":", b";", b",", b"Host: a\r\n", b"Host: b\r\n", b"Host:\r\n",
    b"host: a:1\r\n", b"Content-Length: ", b"Content-Length: 0\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 26\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n",
    b"Content-Length: 00000000005\r\n", b"Content-Length: 18446744073709551621\r\n", b"Content-Length: 99999999\r\n",
    b"content-length : 5\r\n", b"Content_Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ",
    b"transfer-encoding: Chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n", b"Transfer-Encoding: chunked \r\n", b"Transfer-Encoding: xchunked\r\n",
    b"chunked", b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\n", b"5", b"1a\r\n", b"5;a=b\r\nhello\r\n",
    b'5;a="b\r\n"\r\nhello\r\n', b"5 \r\nhello\r\n", b"0x5\r\n", b"-5\r\n", b"FFFFFFFFFFFFFFFFF\r\n",
    b"FFFFFFFFFFFFFFFF\r\n", b"05\r\nhello\r\n", b"5\nhello\n", b"hello", b"X-T: t\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Upgrade: websocket\r\n",
    b"Connection: Transfer-Encoding\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"X-Request-ID: r-1\r\n",
    b"X-Request-ID: r\r\n 1\r\n", b"X-Request-ID: \xe9\r\n", b"Authorization: a\r\n",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n", b"Content-Type: a/b\r\n",
    b"X_Y: z\r\n", b" folded\r\n", b"\x00", b"\x7f", b"\x80", b"\xa0", b"\xff", b"\xc3\xa9", b"\x0b", b"\x0c",
    b"\x85", b"\x1b", b"%00", b"%", b"HTTP/1.1", b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"A" * 100,
    b"A" * 1_500, b"A" * 4_100, b"a: b\r\n" * 30, b"\r\n" * 20, b"A: " + b"b" * 3_000 + b"\r\n", b"QUERY ",
    b"M-SEARCH ", b"SOURCE ", b"PATCH ", b"Trailer: X-T\r\n", b"TE: trailers\r\n", b"Keep-Alive: 1\r\n",
    b"Proxy-Connection: close\r\n", b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n", b"DELETE /d HTTP/1.0\r\n\r\n",
)  # fmt: skip
assert len(FRAGMENTS) <= 128

SEEDS: Final = (
    (0, 0), (1, 38, 23, 71), (1, 47, 23, 57, 58), (1, 47, 23, 57, 59, 73, 23, 0), (3, 8, 17, 32, 23, 0),
    (5, 9, 17, 32, 23), (2, 15, 17, 32, 23), (1, 79, 38, 23, 71, 0), (1, 76, 38, 23, 71, 0),
    (1, 76, 47, 23, 57, 58, 0), (2, 8, 18, 75, 23, 0), (1, 81, 88, 23, 0), (1, 38, 47, 23, 71), (0, 108, 109, 0),
    (2, 12, 17, 32, 23), (4, 10, 17, 32, 79, 38, 23, 71), (114, 115),
)  # fmt: skip


def wire_of(program: bytes) -> bytes:
    """Return the bytes that a program sends."""
    return b"".join(bytes([byte]) if byte < 128 else FRAGMENTS[(byte - 128) % len(FRAGMENTS)] for byte in program[:-4])


def split(wire: bytes, program: bytes) -> list[bytes]:
    """Return the wire in pieces: the program's last four bytes choose the cuts."""
    tail = program[-4:]
    if tail[:1] == b"\xff" and len(wire) <= LIMIT_SIZE:
        return [wire[i : i + 1] for i in range(len(wire))]
    cuts = sorted(len(wire) * byte // 256 for byte in tail[:3])
    return [piece for piece in (wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)) if piece]


# -- what the server makes of it -------------------------------------------------------------------------------------


class ReceivedRequest(NamedTuple):
    """One request as the application gets it."""

    method: str
    path: str
    query: str
    protocol: str
    body: bytes


class Outcome(NamedTuple):
    """The result of a wire: the requests, and the code of the refusal that ended them, if any."""

    calls: list[ReceivedRequest]
    refusal: str
    answers: list[tuple[int, bytes]]  # status and body; empty for the parser alone


def call_of(environ: WSGIEnvironment) -> ReceivedRequest:
    """Return the part of an environ that must not depend on how the bytes were split."""
    body = environ["wsgi.input"].read()
    assert int(environ.get("CONTENT_LENGTH", "0")) == len(body)
    return ReceivedRequest(
        environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], environ["SERVER_PROTOCOL"], body
    )


class UncachedHeads(HeadCache):
    """A head cache that never hits."""

    def __init__(self) -> None:
        super().__init__()
        self.get = dict[bytes, CachedHead]().get


def parse_alone(pieces: Iterable[bytes], heads: HeadCache | None = None) -> Outcome:
    """Feed the parser alone. Exceptions other than Refusal propagate."""
    calls: list[ReceivedRequest] = []
    open_ = [True]

    def deliver(environ: WSGIEnvironment, persistence: str) -> bool:
        calls.append(call_of(environ))
        open_[0] = persistence != CLOSE
        return open_[0]

    message = RequestParser(
        base_environ("http", ("127.0.0.1", 80), CLIENT),
        REQUEST_NAMES,
        heads or HeadCache(),
        deliver,
        lambda _size, _environ: None,
    )
    try:
        for piece in pieces:
            if open_[0]:
                message.feed(piece)
    except Refusal as refusal:
        return Outcome(calls, refusal.code, [])
    finally:
        message.close()
    return Outcome(calls, "", [])


class EchoApplication:
    """Answers with the body and the path in one header, which must not become two. /no… declines a body."""

    def __init__(self) -> None:
        self.calls: list[ReceivedRequest] = []
        self.refusals: list[str] = []
        self.declined: int | None = None  # index of the call whose body was declined

    def wants_body(self, environ: WSGIEnvironment) -> bool:
        wanted = not environ["PATH_INFO"].startswith("/no")
        if not wanted:
            self.declined = len(self.calls)
        return wanted

    def on_refusal(self, code: str, _environ: Any, status: int) -> None:
        if status and code != "internal_error":  # that answers a call whose path breaks the line of X-Path
            self.refusals.append(code)

    def __call__(self, environ: WSGIEnvironment, start_response: Any, /) -> Iterable[bytes]:
        call = call_of(environ)
        self.calls.append(call)
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Path", call.path)])
        return [call.body]


class ManualLoop:
    """A loop with `call_soon` only; the fuzzer runs the callbacks."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._due.append(callback)

    def run(self) -> None:
        """Turn until nothing is left to do."""
        while self._due:
            self._due.pop(0)()


class RecordingTransport(asyncio.Transport):
    """A transport that records writes. A slow one pauses the connection after each write."""

    def __init__(self, *, slow: bool) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80)})
        self.written = b""
        self.connection: Connection | None = None  # set while it may be paused
        self.paused = self.closing = self.shut = False
        self.reading = True
        self._slow = slow

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        assert not self.closing, "an answer after the end"
        assert not self.shut, "an answer after the last one"
        self.written += data
        if self._slow and not self.paused and self.connection is not None:
            self.paused = True
            self.connection.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.shut = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def parse_on_connection(pieces: Iterable[bytes], *, slow: bool = False) -> tuple[Outcome, int | None]:
    """Feed a connection; return the outcome, and the index of the call whose body was declined."""
    app = EchoApplication()
    loop = ManualLoop()
    state = WorkerState(app, cast(asyncio.AbstractEventLoop, loop), LOG)
    connection, transport = Connection(state, CLIENT), RecordingTransport(slow=slow)
    connection.connection_made(transport)
    transport.connection = connection

    def drain() -> None:
        loop.run()
        while transport.paused:
            transport.paused = False
            connection.resume_writing()
            loop.run()

    for piece in pieces:
        if not transport.reading:
            drain()
        elif not slow:
            loop.run()
        if transport.closing:
            break
        connection.data_received(piece)
    drain()
    connection.connection_lost(None)
    assert state.bodies.size == 0, "a body's reservation is left"
    assert state.pipelines.size == 0, "what a pipeline was accounted for with is left"
    assert not state.connections
    answers = read_answers(transport.written, [call.method for call in app.calls])
    finals = [(answer.status, answer.body) for answer in answers if answer.status >= 200]
    assert len(finals) == len(app.calls) + len(app.refusals), "an answer too many or too few"
    for answer in answers:
        assert {name for name, _ in answer.fields} <= FIELDS, answer.fields
    return Outcome(app.calls, "".join(app.refusals), finals), app.declined


# -- the six ---------------------------------------------------------------------------------------------------------


def check(program: bytes) -> None:
    """Run one program; raise AssertionError, or the escaped exception, when a property does not hold."""
    wire = wire_of(program)
    pieces = split(wire, program)
    alone = parse_alone([wire])
    _compare(alone, parse_alone(pieces), len(wire))
    at, again = 0, [wire] * 4
    for call in alone.calls:
        strict = read_request(wire, at)
        assert strict is not None, f"request {call} is none: {wire[at:]!r}"
        assert (call.method, call.protocol) == (strict.method.decode(), "HTTP/" + strict.version.decode())
        assert call.body == strict.body, f"bodies differ: {call.body!r} and {strict.body!r}"
        again += [wire[at : strict.end]] * 4
        at = strict.end
    assert parse_alone(again, UncachedHeads()) == parse_alone(again)
    whole, _ = parse_on_connection([wire])
    _compare(alone._replace(answers=whole.answers), whole, len(wire))
    for slow in (False, True):
        outcome, declined = parse_on_connection(pieces, slow=slow)
        if declined is None:
            _compare(whole, outcome, len(wire))
        else:
            # When sent whole, the body was there without a 100 Continue; up to that call nothing may differ.
            assert outcome.calls[:declined] == whole.calls[:declined]
            assert outcome.answers[:declined] == whole.answers[:declined]
            assert len(outcome.calls) == declined + 1
            assert outcome.calls[declined].body == b""


def _compare(one: Outcome, other: Outcome, size: int) -> None:
    """Assert that two readings of the same bytes agree.

    Where they pass a limit, the one that saw them in smaller pieces may have refused sooner: up to there they agree.
    """
    finals = min(len(one.calls), len(other.calls))
    passed = {one.refusal, other.refusal} & LIMITS
    if not passed or (size <= LIMIT_SIZE and HEADER_COUNT.code not in passed):
        assert one.refusal == other.refusal, f"{one.refusal or 'nothing'} and {other.refusal or 'nothing'}"
        assert len(one.calls) == len(other.calls), f"{one.calls} and {other.calls}"
    assert one.calls[:finals] == other.calls[:finals], f"{one.calls} and {other.calls}"
    assert one.answers[:finals] == other.answers[:finals]


LOG: Final = logging.getLogger("fuzz")
LOG.setLevel(logging.CRITICAL + 1)
REQUEST_NAMES: Final = RequestNames(bytes)
FIELDS: Final = frozenset(
    {
        b"date", b"connection", b"x-request-id", b"traceparent", b"content-type", b"x-path", b"content-length",
        b"retry-after", b"x-content-type-options", b"cache-control", b"x-frame-options", b"referrer-policy",
        b"content-security-policy",
    }
)  # fmt: skip


def main() -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Fuzz the path from bytes to request and back.")
    parser.add_argument("--minutes", type=float, default=20.0, help="duration (default 20)")
    parser.add_argument("--corpus", type=Path, help="a directory that keeps interesting inputs")
    parser.add_argument("--replay", type=Path, help="run one input, print what it sends, and exit")
    options = parser.parse_args()
    if options.replay is not None:
        program = options.replay.read_bytes()
        print(f"{split(wire_of(program), program)}")
        check(program)
        return 0
    if atheris is None:
        print("fuzz_requests needs atheris: pip install atheris", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        corpus = options.corpus or Path(temporary)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS):
            (corpus / f"seed-{number}").write_bytes(bytes(128 + fragment for fragment in seed) + bytes(4))
        arguments = [
            sys.argv[0], f"-max_total_time={round(60 * options.minutes)}", f"-max_len={PROGRAM_SIZE_MAX}",
            "-print_final_stats=1", "-timeout=20", str(corpus),
        ]  # fmt: skip
        atheris.Setup(arguments, lambda data: check(data) if len(data) > 4 else None)
        atheris.Fuzz()  # does not return: the process ends with libFuzzer's own status
    return 0


if __name__ == "__main__":
    sys.exit(main())
