"""The connection: HTTP/1.1 on one socket, from bytes to the application and back, in one turn of the loop.

The main path is short on purpose. uvloop hands over what it read; `app.httpd.request_parser` parses it and delivers
each complete request; the application is called right there and its answer is written once. No task, no future, no
queue and no second thread is on that path.

PERF: 7.2 µs of Python for a POST of 1.5 or 4 kB without the application and the kernel, 3.1 when its head is familiar
(measured warm, on a transport that does nothing; names and standing headers are 0.9 µs of it).

Owns: the order of answers, when to read, and the end.

A request does not run at once (`held`) in four cases: an earlier one is on the thread pool or is answered in pieces
(`_running`); the peer does not take its answers (`app.httpd.write_buffer`); it came in one read with an earlier one,
which was answered at once, or came in company while others stand in line; or all peers together leave too much
(`app.httpd.slow_readers`). It then waits in the backlog, in order, for a turn (`app.httpd.fair_queue`), so that a
pipeline, however long, holds nobody up. Reading pauses while something that was read is not parsed, and when
PIPELINE_DEPTH requests wait.

While the service drains, what was received is answered all the same, and only the last answer says close.

Deadlines are absolute and looked at four times a second on the service's patient clock: from the first byte of a head
to its end, from there to the end of the body, from an answer's write until the kernel has it, and for silence between
requests. A client that sends one byte a second is cut off like one that sends none. In a full worker the connection
that was idle longest makes room for a new one (RFC 9112 §9.5 lets either side end an idle connection at any time); one
whose answer is on its way is not idle. When readers leave too much, the slowest has to go (`app.httpd.slow_readers`).

The bytes of a large body are in the budget of all (`app.httpd.byte_budget`) from when they come until their request is
answered, refused or given up: they go with its environ, and `_release` is called wherever one ends.

Memory, measured over 4,000 connections: 5.2 kB for an idle one, of which uvloop and libuv have 1.4; 5.5 with half a
head; 6.6 with a body under way, and its bytes. What was read of a request is let go of with its answer or its refusal.

Ending is lingering (RFC 9112 §9.6): after the last answer our side is shut, and what the peer still sends is read and
thrown away until it closes too, at most LINGER_SECONDS. Closing at once would make the kernel send RST, which can
take the answer from the peer's hands; a client that is told 413 in the middle of its upload would see a broken pipe
instead. TLS ends its own way, in the same time (`app.httpd.tls`).
"""

import asyncio
from typing import Final, cast
from wsgiref.types import WSGIEnvironment

from app.httpd.framing import Refusal
from app.httpd.pipeline import SLICE_SIZE, Pipeline
from app.httpd.request import BODY_RESERVED
from app.httpd.request_names import log_fields, peer_only_environ
from app.httpd.request_parser import BODY, HEAD, IDLE, RequestParser
from app.httpd.worker_state import IN_PIECES, INLINE, WorkerState
from app.httpd.write_buffer import WriteBuffer
from app.httpd.wsgi_call import CLOSE, PERSIST, WsgiCall, answer_to, problem, status_of
from app.httpd.wsgi_environ import base_environ
from core.limits import (
    BODY_SECONDS,
    HEADERS_SECONDS,
    IDLE_SECONDS,
    KEEPALIVE_SECONDS,
    LINGER_SECONDS,
    PIPELINE_DEPTH,
    WRITE_SECONDS,
    Limit,
)

_KEEPALIVE_SECONDS: Final = KEEPALIVE_SECONDS.value
_SECONDS: Final = {IDLE: KEEPALIVE_SECONDS.value, HEAD: HEADERS_SECONDS.value, BODY: BODY_SECONDS.value}
_SINGLE_SIZE: Final = 16_384  # one feed of a read in which one request may begin, and no more
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Unwanted(Exception):
    """The application does not want the body that is being read."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_backlog", "_client", "_deadline", "_deaf", "_ended", "_exchange", "_held", "_last", "_message", "_reading",
        "_refusal", "_running", "_service", "_succeeds", "_transport", "_writer",
    )  # fmt: skip

    _transport: asyncio.Transport
    _writer: WriteBuffer
    _message: RequestParser

    def __init__(self, service: WorkerState, client: tuple[str, int], refusal: Refusal | None = None) -> None:
        """`client` is the peer's (address, port). With a `refusal`, that is the answer whatever is sent."""
        self._service = service
        self._client = client
        self._refusal = refusal
        self._exchange = WsgiCall()
        self._backlog = Pipeline(service.pipelines)
        self._succeeds = False  # the next request comes in one feed with another, or the last one is to be known
        self._running: WSGIEnvironment | None = None  # the request that is on the pool, or is answered in pieces
        self._held = False  # one runs, or the writer is paused, or there is a backlog: a new request must wait
        self._reading = True  # from the socket
        self._ended = False  # the peer has shut its side
        self._deaf = False  # no further byte of this peer is believed
        self._last = False  # the last answer is written
        self._deadline = service.now + _KEEPALIVE_SECONDS

    # -- called by the loop ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writer = WriteBuffer(self._transport)
        service = self._service
        environ = base_environ(service.scheme, transport.get_extra_info("sockname"), self._client)
        self._message = RequestParser(environ, service.request_names, service.head_cache, self._take, self._reserve)
        service.connections.add(self)
        if self._refusal is not None:
            self._refuse(self._refusal)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        # No head ends behind the first slice; and what one feed may hide in the parser is bounded (RequestParser).
        if (
            not self._held
            and len(data) <= _SINGLE_SIZE
            and data.find(b"\r", SLICE_SIZE) < 0
            and not (self._service.fair_queue.is_busy and data.count(b"\r\n\r\n") > 1)
        ):
            self._parse(data)
        else:
            self._backlog.read(data)
            self._parse_slices()

    def eof_received(self) -> bool:
        """The peer has shut its side. True keeps ours open for the answers that it still waits for. Not on TLS: there
        what was written is sent, and nothing can be any more.
        """
        self._ended = True
        if self._transport.can_write_eof():
            return self._held
        self._end()
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self._end()
        self._release(self._message.forget())
        self._message.close()
        if self._running is not None and self._service.long_answers.remove(self):
            self._release(self._running)  # what is on the pool is given back when it comes from there
        self._service.slow_readers.remove(self)
        self._service.connections.discard(self)
        self._service.lost()

    def pause_writing(self) -> None:
        self._writer.is_paused = self._held = True
        self._service.slow_readers.add(self)
        self._regulate()

    def resume_writing(self) -> None:
        self._writer.is_paused = False
        self._service.slow_readers.remove(self)
        self._resume()

    # -- one request, once it is complete ----------------------------------------------------------------------------

    def _take(self, environ: WSGIEnvironment, persistence: str) -> bool:
        """Serve a request, or let it wait for its turn. False when it is the last one."""
        service = self._service
        self._deadline = service.now + _KEEPALIVE_SECONDS
        if self._held or self._succeeds or service.slow_readers.is_full:
            try:
                self._backlog.append(environ, persistence)
            except Refusal as refusal:
                self._release(environ)
                self._refuse(refusal, environ)
                return False
            self._line_up()
            if len(self._backlog) == PIPELINE_DEPTH.value and self._is_stuck():
                self.passed(PIPELINE_DEPTH, "The peer sends ahead of its answers and is read no further")
            self._deaf = persistence == CLOSE
        else:
            self._succeeds = True
            self._serve(environ, persistence)
        return not self._deaf

    def _serve(self, environ: WSGIEnvironment, persistence: str) -> None:
        """Have the application answer: inline, or in pieces or on the pool if it says so of this route."""
        service = self._service
        service.served += 1
        if service.served == service.served_max:
            service.retire()
        exchange, may_block, path = self._exchange, service.may_block, environ["PATH_INFO"]
        way = INLINE
        if path not in service.inline and may_block is not None:
            way = may_block(environ["REQUEST_METHOD"], path)
        if way == INLINE:
            answer = exchange.answer(service, environ, persistence)
        else:
            begun = exchange.begin(service, environ, persistence) if way == IN_PIECES else None
            if begun is None:
                self._running, self._held = environ, True
                if way == IN_PIECES:
                    service.long_answers.add(self)
                else:
                    service.submit(self._serve_on_thread, environ, persistence)
                return
            answer = begun
        on_written = service.count(environ, exchange.status)
        self._writer.write(answer)
        if on_written is not None:
            on_written(environ)
        if exchange.persistence == CLOSE:
            self._finish()
        if BODY_RESERVED in environ:
            self._release(environ)

    def _serve_on_thread(self, environ: WSGIEnvironment, persistence: str) -> None:
        # When the peer has gone while its request waited for a thread, nobody wants the answer.
        answer = b"" if self._last else self._exchange.answer(self._service, environ, persistence)
        self._service.loop.call_soon_threadsafe(self.answered, answer)

    def make_piece(self) -> bytes | None:
        """Make the next piece of a long answer; returns the answer when that was the last."""
        return self._exchange.proceed()

    def answered(self, answer: bytes) -> None:
        """Send the answer of the request that kept those behind it waiting, and go on with them."""
        assert self._running is not None
        environ, self._running = self._running, None
        self._release(environ)
        if not self._last:
            on_written = self._service.count(environ, self._exchange.status)
            self._send(answer, self._exchange.persistence)
            if on_written is not None:
                on_written(environ)
            self._resume()

    def _send(self, answer: bytes, persistence: str) -> None:
        self._writer.write(answer)
        if persistence == CLOSE:
            self._finish()

    def _finish(self) -> None:
        """The last answer is written: shut our side and let the peer close, so that no RST overtakes the answer."""
        self._end()
        if self._ended or not self._transport.can_write_eof():
            self._transport.close()  # TLS has a shutdown of its own, which reads what is still on its way
        else:
            self._transport.write_eof()
            self._regulate()

    def _leave(self) -> None:
        """Close a connection on which nothing is under way, and so nothing can be lost that lingering would save."""
        self._end()
        self._transport.close()

    def _end(self) -> None:
        """Nothing more is believed of this peer, or written to it, than has been. It may take that, and then linger."""
        self._deaf = self._last = True
        for environ in self._backlog.clear():
            self._release(environ)
        self._deadline = self._service.now + LINGER_SECONDS.value

    # -- one that is refused -----------------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal, named: WSGIEnvironment | None = None) -> None:
        """Answer with a problem document, in its turn, and end. `named` names the request, if somebody asked before."""
        self._deaf = True
        service, environ = self._service, named or self._message.named
        service.refused(refusal.code, environ, refusal.detail, refusal.status)
        head = self._message.is_head or environ.get("REQUEST_METHOD") == "HEAD"
        answer = problem(refusal, service, CLOSE, service.request_names.response_lines(environ), head=head)
        service.count(environ, status_of(refusal))
        self._release(self._message.forget())
        if self._held:
            self._backlog.end_with(answer)
            self._line_up()
        else:
            self._send(answer, CLOSE)

    def passed(self, limit: Limit, what: str) -> None:
        """Count a limit of which the client is told nothing."""
        self._service.refused(
            limit.code, peer_only_environ(self._client), f"{what} (limit: {limit.value} {limit.unit})."
        )

    def _continue(self) -> None:
        """RFC 9110 §10.1.1: ask for the body that the client holds back, when it is this request's turn; or answer at
        once, and close, when the application does not want it.
        """
        environ = None if self._held or self._backlog.unparsed else self._message.take_expectation()
        if environ is None:
            return
        try:
            wanted = self._wants_body(environ)
        except Exception as error:  # as for any other mistake of the application
            self._service.log.exception("Error asking whether a body is wanted", extra=log_fields(environ))
            self._refuse(answer_to(error))
            return
        if wanted:
            self._send(_CONTINUE, PERSIST)
        else:
            self._answer_without_body()

    def _wants_body(self, environ: WSGIEnvironment) -> bool:
        wants_body = self._service.wants_body
        return wants_body is None or wants_body(environ)

    def _answer_without_body(self) -> None:
        """Have the application say, in its turn, why it does not want the body of the request being read, and end."""
        self._deaf = True
        environ = self._message.without_body()
        self._release(self._message.forget())
        if self._held:
            self._backlog.end_with((environ, CLOSE))
            self._line_up()
        else:
            self._serve(environ, CLOSE)

    def _reserve(self, size: int, environ: WSGIEnvironment) -> None:
        """Account for bytes of a large body, if it is wanted at all: a stranger gets no memory. They belong to their
        request, until it is answered or given up.
        """
        if BODY_RESERVED not in environ:
            if not self._wants_body(environ):
                raise _Unwanted
            environ[BODY_RESERVED] = 0
        self._service.bodies.reserve(size)
        environ[BODY_RESERVED] += size

    def _release(self, environ: WSGIEnvironment) -> None:
        self._service.bodies.release(environ.pop(BODY_RESERVED, 0))

    # -- flow --------------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes | memoryview) -> None:
        self._succeeds = self._service.draining
        try:
            if self._message.feed(data):
                self._deadline = self._service.now + _SECONDS[self._message.phase]
                self._continue()
        except Refusal as refusal:
            self._refuse(refusal)
        except _Unwanted:
            self._answer_without_body()
        except Exception as error:  # a mistake of ours must not leave a client waiting
            named = self._message.named
            self._service.log.exception("Error reading a request", extra=log_fields(named))
            self._refuse(answer_to(error), named)

    def _parse_slices(self) -> None:
        """Feed what was read until it is used up, a request was answered, or those that wait are enough; but not past
        others who stand in line.
        """
        in_line = self._service.fair_queue.is_busy or (self._held and not self._is_stuck())
        self._succeeds = False
        while self._backlog.unparsed and not (in_line or self._succeeds or self._deaf or self._is_full()):
            self._parse_slice()
        if self._backlog.unparsed:
            self._line_up()
            try:
                self._backlog.account()
            except Refusal as refusal:
                self._refuse(refusal)
        self._regulate()

    def _parse_slice(self) -> None:
        data = self._backlog.take_slice(self._message.body_left)
        self._exchange.followed = bool(self._backlog)
        self._parse(data)
        if self._deaf or not self._backlog.unparsed:
            self._backlog.forget_unparsed()

    def _is_stuck(self) -> bool:
        """Whether nothing can be answered now."""
        return self._running is not None or self._writer.is_paused

    def _is_full(self) -> bool:
        return self._writer.is_paused or self._backlog.is_full

    def _line_up(self) -> None:
        """Do, in turn with other connections, what is left to do: now, or when what holds it back is over."""
        self._held = self._exchange.followed = True
        if not self._is_stuck():
            self._service.fair_queue.add(self)

    def turn(self) -> bool:
        """Give one answer, or parse one slice; called in turn with other connections. False when nothing is left, or
        something holds the rest back.
        """
        if self._last or self._is_stuck():
            return False
        backlog = self._backlog
        if len(backlog):
            item = backlog.pop()
            if isinstance(item, bytes):
                self._send(item, CLOSE)
            else:
                self._exchange.followed = bool(backlog)
                self._serve(item.environ, item.persistence)
        elif backlog.unparsed:
            self._held = False
            self._parse_slice()
        if self._last or self._is_stuck():
            self._regulate()
            return False
        if backlog:
            self._held = True
            self._regulate()
            return True
        self._let_go()
        return False

    def _resume(self) -> None:
        """What held requests back is over: those that wait have their turns, then reading goes on."""
        if self._last or self._is_stuck():
            return
        if self._backlog:
            self._line_up()
        else:
            self._let_go()

    def _let_go(self) -> None:
        """Nothing waits any more: the next request is answered at once."""
        self._held = self._exchange.followed = False
        self._continue()
        if self._ended and not (self._held or self._last):
            self._finish()
        self._regulate()

    def _regulate(self) -> None:
        """Read from the socket only while there is room for what comes; while lingering, always."""
        wanted = self._last or not (self._backlog.unparsed or self._is_full())
        if wanted != self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """Look at the deadlines; called a few times a second. True when one was over, which takes a hundred times as
        long as to see that none is.
        """
        service, now = self._service, self._service.now
        passed = self._writer.check_deadline(now)
        if passed is WRITE_SECONDS:
            return self.cut_off(passed, "The peer did not take its answer in time and is cut off")
        if passed is not None:
            self.passed(passed, "The peer does not take its answers and gets no more until it does")
        if self._last:
            if self._writer.pending:
                self._deadline = now + LINGER_SECONDS.value
            elif now > self._deadline:
                return self.cut_off(LINGER_SECONDS, "The peer did not close after its last answer and is cut off")
        elif self._held:
            self._deadline = now + _SECONDS[self._message.phase]  # the client waits for us; only its writes are timed
        elif now > self._deadline:
            self._expire()
            return True
        elif self._idle_long():
            if service.draining:
                self._leave()
            else:
                service.deadline_sweep.add_idle(self)
        return False

    def cut_off(self, limit: Limit, what: str) -> bool:
        """End at once, whatever the peer has not taken. Returns True."""
        self.passed(limit, what)
        self._end()
        self._transport.abort()
        return True

    @property
    def pending(self) -> int:
        """Bytes that were written and not taken."""
        return self._writer.pending

    def _expire(self) -> None:
        phase = self._message.phase
        if phase == IDLE:
            self.passed(KEEPALIVE_SECONDS, "The connection was silent and is closed")
            self._leave()
            return
        limit = HEADERS_SECONDS if phase == HEAD else BODY_SECONDS
        what = "head" if phase == HEAD else "body"
        detail = f"The {what} of the request took more than {limit.value} {limit.unit} (RFC 9110 §15.5.9)."
        self._refuse(Refusal(limit.status, limit.code, detail))

    def _idle_long(self) -> bool:
        """Whether nothing is under way, and was not for a while: a busy client's next request may be on its way."""
        if self._held or self._last or self._message.phase != IDLE:
            return False
        return self._deadline - self._service.now <= _KEEPALIVE_SECONDS - IDLE_SECONDS.value and not self.pending

    @property
    def idle_until(self) -> float:
        """When this connection would be closed if it stays idle; so the lowest has been idle longest."""
        return self._deadline

    def make_room(self) -> bool:
        """Close, for the sake of a new connection, if this one is idle still (RFC 9112 §9.5)."""
        if not self._idle_long():
            return False
        self.passed(IDLE_SECONDS, "The connection was idle and made room for a new one")
        self._leave()
        return True
