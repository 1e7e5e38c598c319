"""HTTP/1.1 on one socket: from bytes to the application and back.

On the main path uvloop hands over the bytes that it has read, the parser delivers each complete request, the
application is called at once, and its answer is written: no task, no future, no queue, no second thread, all in one
turn of the loop.

Owns: the order of answers, when to read from the socket, and how the connection ends. `app.httpd.connection_state` is
a table of the states and of what each event does in them.

Invariants: answers leave in the order of their requests. Reading from the socket pauses while input is unparsed and
while PIPELINE_DEPTH requests wait. docs/design/flow-control.md says when a request waits in the pipeline, and
docs/design/connection.md why a connection lingers at its end, with figures.
"""

import asyncio
from asyncio import Future
from typing import Final, NamedTuple, cast
from wsgiref.types import WSGIEnvironment

from app.httpd.application import IN_PIECES, IN_TURN, INLINE, POOL, Chunks
from app.httpd.body_admission import BodyUnwanted
from app.httpd.connection_deadlines import PHASE_SECONDS, check_deadlines, close_if_idle
from app.httpd.connection_state import CLOSING, LINGERING, QUEUEING, READY
from app.httpd.pipeline import SLICE_SIZE, Pipeline
from app.httpd.refusal import Refusal
from app.httpd.request import BODY_RESERVED, REFUSAL_LINES
from app.httpd.request_names import log_fields, peer_only_environ
from app.httpd.request_parser import RequestParser
from app.httpd.response import CLOSE, PERSIST, problem_answer, refusal_of, status_of
from app.httpd.socket_address import server_of
from app.httpd.worker_state import WorkerState
from app.httpd.write_buffer import WriteBuffer
from app.httpd.wsgi_call import WsgiCall
from app.httpd.wsgi_environ import base_environ
from core.limits import KEEPALIVE_SECONDS, LINGER_SECONDS, PIPELINE_DEPTH, Limit

_KEEPALIVE_SECONDS: Final = KEEPALIVE_SECONDS.value
_FEED_SIZE_MAX: Final = 16_384  # bytes; a larger read is fed to the parser in slices
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ConnectionSnapshot(NamedTuple):
    """The state of a connection, for tests. Sizes are in bytes."""

    state: int  # app.httpd.connection_state
    phase: int  # app.httpd.request_parser: IDLE, HEAD, BODY
    is_reading: bool
    waiting_count: int  # parsed requests in the pipeline
    unparsed_size: int
    unread_size: int  # of answers that the kernel has not accepted yet
    body_size: int  # received of the body that is being read
    body_size_left: int
    body_pieces_count: int


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_call", "_client", "_is_reading", "_must_queue", "_peer_ended", "_pipeline", "_request", "_transport",
        "deadline", "parser", "state", "worker", "writer",
    )  # fmt: skip

    _transport: asyncio.Transport
    parser: RequestParser
    writer: WriteBuffer

    def __init__(self, worker: WorkerState, client: tuple[str, int]) -> None:
        """`client` is the peer's (address, port), as `app.httpd.socket_address` has it."""
        self.worker = worker
        self._client = client
        self._call = WsgiCall()
        self._pipeline = Pipeline(worker.pipelines)
        self.state = READY  # 0, so `if self.state` reads "if not READY"
        # The request that is being answered on the pool, in pieces, or deferred.
        self._request: WSGIEnvironment | None = None
        # Whether further requests of the current feed are queued, because one was answered. While the worker drains,
        # all requests are queued: only the answer of the last one carries Connection: close.
        self._must_queue = False
        self._peer_ended = False  # the client has sent EOF
        self._is_reading = True  # from the socket
        self.deadline = worker.now + _KEEPALIVE_SECONDS

    # -- called by the loop ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.writer = WriteBuffer(self._transport)
        worker = self.worker
        server = server_of(transport.get_extra_info("sockname"), worker.scheme)
        environ = base_environ(worker.scheme, server, self._client)
        self.parser = RequestParser(environ, worker.request_names, worker.head_cache, self._on_request, self._reserve)
        worker.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.state >= CLOSING:
            return
        if (
            not self.state
            and (len(data) <= SLICE_SIZE or self._fits_one_feed(data))
            and not (self.worker.fair_queue.is_busy and data.count(b"\r\n\r\n") > 1)
        ):
            self._parse(data)
        else:
            self._pipeline.add_bytes(data)
            self._parse_slices()

    def eof_received(self) -> bool:
        """The client will send nothing more. Returns True to keep our side open while the client waits for answers.

        Our side closes too on TLS, where nothing more can be written (what was written is still sent), and while an
        answer is deferred, because a client that has left looks the same as one that has half-closed.
        """
        self._peer_ended = True
        if self._transport.can_write_eof() and self._call.deferred is None:
            return READY < self.state < LINGERING
        self._stop_serving()
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        worker = self.worker
        self._stop_serving()
        worker.bodies.release(self.parser.drop_request())
        self.parser.close()
        # The body of a request on the pool, or with a deferred answer, is released in `finish_request`.
        if self._request is not None and worker.long_answers.remove(self):
            worker.bodies.release(self._request)
        if self._call.deferred is not None:
            self._call.deferred.cancel()
        worker.slow_readers.remove(self)
        worker.connections.discard(self)
        worker.on_connection_lost()

    def pause_writing(self) -> None:
        self.writer.is_paused = True
        self.state = self.state or QUEUEING
        self.worker.slow_readers.add(self)
        self._regulate_reading()

    def resume_writing(self) -> None:
        self.writer.is_paused = False
        self.worker.slow_readers.remove(self)
        self._resume()

    # -- a complete request ------------------------------------------------------------------------------------------

    def _on_request(self, environ: WSGIEnvironment, persistence: str) -> bool:
        """Serve a request, or queue it. Returns False when no further request is wanted."""
        worker = self.worker
        self.deadline = worker.now + _KEEPALIVE_SECONDS
        if self.state or self._must_queue or worker.slow_readers.is_full:
            return self._queue(environ, persistence)
        self._must_queue = True
        self._serve(environ, persistence)
        return self.state < CLOSING

    def _reserve(self, size: int, environ: WSGIEnvironment) -> None:
        """Called before `size` more bytes of a large body are kept (`BodyAdmission.reserve`)."""
        self.worker.bodies.reserve(size, environ)

    def _queue(self, environ: WSGIEnvironment, persistence: str) -> bool:
        try:
            self._pipeline.append(environ, persistence)
        except Refusal as refusal:
            self.worker.bodies.release(environ)
            self.refuse(refusal, environ)
            return False
        self._join_fair_queue()
        if len(self._pipeline) == PIPELINE_DEPTH.value and self._is_blocked():
            self.report_limit(PIPELINE_DEPTH, "The peer has too many requests waiting; reading from it pauses")
        if persistence == CLOSE:
            self.state = CLOSING
        return self.state < CLOSING

    def _serve(self, environ: WSGIEnvironment, persistence: str) -> None:
        """Have the application answer a request in the way that its route declares, or queue it until its turn."""
        worker, call = self.worker, self._call
        path = environ["PATH_INFO"]
        way = INLINE if path in worker.inline else worker.way_of(environ["REQUEST_METHOD"], path)
        # In any state but READY it is the turn of this request, or it is refused without its body.
        if way == IN_TURN and self.state == READY and not worker.fair_queue.admits_at_once():
            self._queue(environ, persistence)
            return
        worker.served += 1
        if worker.served == worker.served_max:
            worker.retire()
        if way == POOL:
            self._hold_others_behind(environ)
            worker.run_on_pool(self._serve_on_thread, environ, persistence)
            return
        answer = call.begin(worker, environ, persistence)
        while answer is None:
            if call.deferred is not None:
                self._hold_others_behind(environ)
                self._finish_when_done(call.deferred)
                return
            if way == IN_PIECES or call.is_compressing:
                self._hold_others_behind(environ)
                worker.long_answers.add(self)
                return
            answer = call.make_piece()
        on_written = worker.on_answer(environ, call.status)
        self.writer.write(answer)
        if on_written is not None:
            on_written(environ)
        if call.persistence == CLOSE:
            self._close_lingering()
        if BODY_RESERVED in environ:
            worker.bodies.release(environ)

    def _hold_others_behind(self, environ: WSGIEnvironment) -> None:
        """Queue further requests until `finish_request` is called for this one."""
        self._request = environ
        self.state = self.state or QUEUEING

    def _finish_when_done(self, deferred: Future[Chunks]) -> None:
        deferred.add_done_callback(self._on_deferred_done)
        if self._peer_ended:
            self.close()

    def _on_deferred_done(self, _deferred: Future[Chunks]) -> None:
        answer = self._call.finish_deferred(is_wanted=self.state != LINGERING)
        if answer is None:
            self.worker.long_answers.add(self)
        else:
            self.finish_request(answer)

    def cancel_deferred(self) -> Future[Chunks] | None:
        """Cancel the deferred answer of the current request, if there is one, and close without an answer.

        Returns its future, which is done in one of the next turns of the loop.
        """
        deferred = self._call.deferred
        if deferred is not None:
            self.close()
            deferred.cancel()
        return deferred

    def _serve_on_thread(self, environ: WSGIEnvironment, persistence: str) -> None:
        # If the client has left while its request waited for a thread, no answer is needed.
        answer = b"" if self.state == LINGERING else self._call.answer(self.worker, environ, persistence)
        self.worker.loop.call_soon_threadsafe(self.finish_request, answer)

    def make_piece(self) -> bytes | None:
        """Make the next piece of a long answer. Returns the whole answer when that piece was the last."""
        return self._call.make_piece()

    def finish_request(self, answer: bytes) -> None:
        """Send the answer of a request that `_hold_others_behind` was called for, and go on with the others."""
        assert self._request is not None
        environ, self._request = self._request, None
        self.worker.bodies.release(environ)
        if self.state != LINGERING:
            on_written = self.worker.on_answer(environ, self._call.status)
            self._send(answer, self._call.persistence)
            if on_written is not None:
                on_written(environ)
            self._resume()

    def _send(self, answer: bytes, persistence: str) -> None:
        self.writer.write(answer)
        if persistence == CLOSE:
            self._close_lingering()

    # -- a request that is refused -----------------------------------------------------------------------------------

    def refuse(self, refusal: Refusal, environ: WSGIEnvironment | None = None) -> None:
        """Answer with a problem document, after the answers to earlier requests, and close.

        `environ` is that of the refused request, None if the parser has it.
        """
        has_earlier, self.state = self.state != READY, CLOSING
        worker, environ = self.worker, environ or self.parser.refused_environ
        worker.report_refusal(refusal.code, environ, refusal.detail, refusal.status)
        head = self.parser.is_head or environ.get("REQUEST_METHOD") == "HEAD"
        names = worker.request_names.response_lines(environ) + environ.get(REFUSAL_LINES, "")
        answer = problem_answer(refusal, worker, CLOSE, names, head=head)
        worker.on_answer(environ, status_of(refusal))
        worker.bodies.release(self.parser.drop_request())
        if has_earlier:
            self._pipeline.end_with(answer)
            self._join_fair_queue()
        else:
            self._send(answer, CLOSE)

    def report_limit(self, limit: Limit, what: str) -> None:
        """Report that a limit was exceeded, without telling the client."""
        detail = f"{what} (limit: {limit.value} {limit.unit})."
        self.worker.report_refusal(limit.code, peer_only_environ(self._client), detail)

    def _send_continue(self) -> None:
        """Ask for the body that the client holds back (RFC 9110 §10.1.1), when it is this request's turn.

        When the application does not want the body, answer without it and close.
        """
        environ = None if self.state or self._pipeline.unparsed else self.parser.pop_expectation()
        if environ is None:
            return
        try:
            is_wanted = self.worker.bodies.wants(environ)
        except Exception as error:  # handled like any other error of the application
            self.worker.log.exception("Error asking whether a body is wanted", extra=log_fields(environ))
            self.refuse(refusal_of(error))
            return
        if is_wanted:
            self._send(_CONTINUE, PERSIST)
        else:
            self._answer_without_body()

    def _answer_without_body(self) -> None:
        """Have the application answer why it does not want the body that is being read, then close.

        The answer is sent after those of earlier requests.
        """
        has_earlier, self.state = self.state != READY, CLOSING
        environ = self.parser.end_body()
        self.worker.bodies.release(self.parser.drop_request())
        if has_earlier:
            self._pipeline.end_with((environ, CLOSE))
            self._join_fair_queue()
        else:
            self._serve(environ, CLOSE)

    # -- flow --------------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes | memoryview) -> None:
        self._must_queue = self.worker.draining
        try:
            if self.parser.feed(data):
                self.deadline = self.worker.now + PHASE_SECONDS[self.parser.phase]
                self._send_continue()
        except Refusal as refusal:
            self.refuse(refusal)
        except BodyUnwanted:
            self._answer_without_body()
        except Exception as error:  # an error of the server's own must not leave a client waiting
            environ = self.parser.refused_environ
            self.worker.log.exception("Error reading a request", extra=log_fields(environ))
            self.refuse(refusal_of(error), environ)

    def _fits_one_feed(self, data: bytes) -> bool:
        """Return whether a read of more than a slice may be fed as a whole.

        llhttp cannot be stopped inside a buffer, so one feed delivers every request in it. No head may end beyond the
        first slice, which bounds the number of requests; and nothing is inflated, which would multiply the bytes.
        """
        return len(data) <= _FEED_SIZE_MAX and data.find(b"\r", SLICE_SIZE) < 0 and not self.parser.is_inflating

    def _parse_slices(self) -> None:
        """Feed what was read until nothing is left, a request was answered, or the pipeline is full.

        While other connections are queued, feed nothing: the bytes wait for this connection's turn.
        """
        must_wait = self.worker.fair_queue.is_busy or (self.state != READY and not self._is_blocked())
        self._must_queue = False
        while self._pipeline.unparsed and not (
            must_wait or self._must_queue or self.state >= CLOSING or self._is_full()
        ):
            self._parse_slice()
            must_wait = self.parser.is_inflating  # for other turns of the loop: a slice may hold 200 kB
        if self._pipeline.unparsed:
            self._join_fair_queue()
            try:
                self._pipeline.reserve_unparsed()
            except Refusal as refusal:
                self.refuse(refusal)
        self._regulate_reading()

    def _parse_slice(self) -> None:
        data = self._pipeline.next_slice(self.parser.body_size_left)
        self._call.is_followed = bool(self._pipeline)
        self._parse(data)
        if self.state >= CLOSING or not self._pipeline.unparsed:
            self._pipeline.drop_unparsed()

    def _is_blocked(self) -> bool:
        """Return whether nothing can be answered now."""
        return self._request is not None or self.writer.is_paused

    def _is_full(self) -> bool:
        return self.writer.is_paused or self._pipeline.is_full

    def _join_fair_queue(self) -> None:
        """Join `app.httpd.fair_queue`: now, or when the connection is no longer blocked."""
        self.state = self.state or QUEUEING
        self._call.is_followed = True
        if not self._is_blocked() or self._can_parse_ahead():
            self.worker.fair_queue.add(self)

    def _can_parse_ahead(self) -> bool:
        """Return whether to parse although nothing can be answered now.

        Reading pauses while input is unparsed, and without reading the server does not notice that the client has left.
        """
        return self._request is not None and bool(self._pipeline.unparsed) and not self._is_full()

    def run_step(self) -> bool:
        """Give one answer or parse one slice; the fair queue calls it in turn with other connections.

        Returns False when nothing is left to do, or the connection is blocked.
        """
        if self.state == LINGERING:
            return False
        pipeline = self._pipeline
        if self._is_blocked():
            if self._can_parse_ahead():
                self._parse_slice()
                self._regulate_reading()
            return self._can_parse_ahead()
        if len(pipeline):
            item = pipeline.pop()
            if isinstance(item, bytes):
                self._send(item, CLOSE)
            else:
                self._call.is_followed = bool(pipeline)
                self._serve(item.environ, item.persistence)
        elif pipeline.unparsed:
            self.state = READY
            self._parse_slice()
        if self.state == LINGERING or self._is_blocked():
            self._regulate_reading()
            return self._can_parse_ahead()
        if pipeline:
            self.state = self.state or QUEUEING
            self._regulate_reading()
            return True
        self._become_ready()
        return False

    def _resume(self) -> None:
        """Go on with the requests that wait, if the connection is no longer blocked."""
        if self.state == LINGERING or self._is_blocked():
            return
        if self._pipeline:
            self._join_fair_queue()
        else:
            self._become_ready()

    def _become_ready(self) -> None:
        """Mark that no request waits, so that the next one is answered at once."""
        if self.state == QUEUEING:
            self.state = READY
        self._call.is_followed = False
        self._send_continue()
        if self._peer_ended and self.state == READY:
            self._close_lingering()
        self._regulate_reading()

    def _regulate_reading(self) -> None:
        """Pause or resume reading: read only while there is room for more input, and always while lingering."""
        wanted = self.state == LINGERING or not (self._pipeline.unparsed or self._is_full())
        if wanted != self._is_reading and not self._transport.is_closing():
            self._is_reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _close_lingering(self) -> None:
        """Shut our side after the last answer and wait for the client to close, so that no RST overtakes the answer."""
        self._stop_serving()
        if self._peer_ended or not self._transport.can_write_eof():
            self._transport.close()  # TLS has a shutdown of its own, which reads what the client still sends
        else:
            self._transport.write_eof()
            self._regulate_reading()

    def close(self) -> None:
        """Close without lingering: no answer is on its way that an RST could overtake."""
        self._stop_serving()
        self._transport.close()

    def abort(self, limit: Limit, what: str) -> None:
        """Close at once and discard what the client has not read. Reports `limit` with a sentence on what happened."""
        self.report_limit(limit, what)
        self._stop_serving()
        self._transport.abort()

    def abort_reading(self, limit: Limit, what: str) -> None:
        """Close at once, like `abort`, because of how the peer reads its answers; logs bytes and rate."""
        self.worker.slow_readers.log_disconnected(self._client[0], self.writer.reading(self.worker.now), limit)
        self.abort(limit, what)

    def _stop_serving(self) -> None:
        """Parse and write nothing more. The client may still read what was written."""
        self.state = LINGERING
        for environ in self._pipeline.clear():
            self.worker.bodies.release(environ)
        self.deadline = self.worker.now + LINGER_SECONDS.value

    # -- called by the queues of the worker --------------------------------------------------------------------------

    def check_deadlines(self) -> bool:
        """Close when a deadline is over; returns whether it was. Called a few times a second."""
        return check_deadlines(self)

    def make_room(self) -> bool:
        """Close, if idle, to make room for a new connection; returns whether it was closed."""
        return close_if_idle(self)

    @property
    def idle_until(self) -> float:
        """When this connection will be closed if it stays idle. The lowest value has been idle longest."""
        return self.deadline

    @property
    def pending_size(self) -> int:
        """Bytes that were written and that the kernel has not accepted yet."""
        return self.writer.pending_size

    def snapshot(self) -> ConnectionSnapshot:
        """Return what tests may look at."""
        parser, pipeline = self.parser, self._pipeline
        return ConnectionSnapshot(
            self.state, parser.phase, self._is_reading, len(pipeline), len(pipeline.unparsed), self.writer.pending_size,
            parser.body_size, parser.body_size_left, parser.body_pieces_count,
        )  # fmt: skip
