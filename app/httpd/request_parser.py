"""The message: the request that is being read on one connection, then the next one.

Owns the parser (llhttp through httptools) and what it has said so far: target, fields, body. `feed` takes bytes; each
complete request is handed to `deliver` as a WSGI environ from inside `feed`, so that the application runs in the same
turn. A request has its names (`app.httpd.request_names`) from the end of its head on, so that whatever happens to it
later is told under them. `feed` raises Refusal when the bytes cannot be, or may not become, a request; after that
nothing more is fed. It knows no socket, no time and no order of answers: that is `app.httpd.connection`. The rules it
applies are in
`app.httpd.framing` and `app.httpd.wsgi_environ`.

Invariants. What hides inside the parser is bounded although llhttp bounds nothing: the bytes of an incomplete head,
chunk extensions, trailers. Trailers are dropped: nothing reads them, and merging them into the head would be a way
around every check of it (RFC 9112 §7.1.2).

A whole request behind a head that was read before does not go through the parser at all (`app.httpd.head_cache`).

Upgrade is never honoured (RFC 9110 §7.8 allows it). llhttp stops at such a head and would lose the body (Java's client
offers h2c with every first POST), so a second parser takes over behind a synthetic head that carries the framing
alone.
"""

from collections.abc import Callable
from io import BytesIO
from time import monotonic_ns
from typing import Final
from wsgiref.types import WSGIEnvironment

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from app.httpd.framing import CHUNKED, Refusal, body_length
from app.httpd.head_cache import HeadCache
from app.httpd.request import RECEIVED_NS, REQUEST_ID
from app.httpd.request_names import RequestNames
from app.httpd.wsgi_call import CLOSE, KEEP_ALIVE, PERSIST
from app.httpd.wsgi_environ import add_fields, add_target
from core.limits import BODY_SIZE, HEADER_COUNT, HEADERS_SIZE, REQUEST_LINE_SIZE

# Where the parser stands.
IDLE: Final = 0  # between messages
HEAD: Final = 1
BODY: Final = 2

LARGE_BODY_SIZE: Final = 65_536  # of a body, or of its end, so much is bounded by the number of connections alone
# Pieces of a body become one when they are so many: a client may send it in chunks of two bytes, each of which is an
# object of 43.
_FOLD_COUNT: Final = 1_024
_REQUEST_LINE_SIZE_MAX: Final = REQUEST_LINE_SIZE.value
# While a head is incomplete its bytes hide in the parser. One of more bytes than this would not be accepted anyway.
_HEAD_SIZE_MAX: Final = REQUEST_LINE_SIZE.value + HEADERS_SIZE.value + 4
# RFC 9112 §7.1.1 and §7.1.2 bound neither chunk extensions nor trailers. A byte of content costs at most six with the
# frame of its chunk ("1\r\nx\r\n"); all else together gets the size of a head.
_CHUNK_SIZE_MIN: Final = 6


class RequestParser:
    """Reads one request after another."""

    __slots__ = (
        "_awaited",
        "_base",
        "_body",
        "_deliver",
        "_environ",
        "_expects",
        "_fed",
        "_fields",
        "_folded",
        "_heads",
        "_learning",
        "_length",
        "_parser",
        "_persistence",
        "_received",
        "_reserve",
        "_reserved",
        "_target",
        "_tracer",
        "_unfamiliar",
        "_upgrade",
        "phase",
    )  # fmt: skip

    def __init__(
        self,
        base: WSGIEnvironment,
        tracer: RequestNames,
        heads: HeadCache,
        deliver: Callable[[WSGIEnvironment, str], bool],
        reserve: Callable[[int, WSGIEnvironment], None],
    ) -> None:
        """`base` is what all environs share; `tracer` gives requests their names; `heads` are those that are known.

        `deliver(environ, persistence)` gets each request, with PERSIST, KEEP_ALIVE or CLOSE as it asked for, and says
        whether more are wanted. `reserve(size, environ)` is asked before `size` more bytes of a large body are kept
        for the request that `environ` describes, 0 when one is announced, and may raise Refusal.
        """
        self.phase = IDLE
        self._base = self._environ = base
        self._tracer = tracer
        self._heads = heads
        self._unfamiliar = 0  # the hash of the last head that was not
        self._learning = b""  # the head that is being fed, when it is to be learned
        self._deliver = deliver
        self._reserve = reserve
        self._parser = HttpRequestParser(self)
        self._awaited = IDLE  # the phase in which the last feed ended
        self._fed = 0  # bytes fed since that phase was first waited in
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._folded = 0  # of these, the first so many are made of many
        self._length = 0
        self._received = 0  # bytes of the body
        self._reserved = 0  # bytes of it that were reserved
        self._expects = False
        self._upgrade = b""  # the framing of a request whose Upgrade is ignored
        self._persistence = PERSIST

    def feed(self, data: bytes | memoryview) -> bool:
        """Parse `data`, delivering each request that it completes.

        Returns True when the input ended inside a head or body in which it had not ended before: a deadline begins.
        Raises Refusal.
        """
        if self.phase == IDLE and type(data) is bytes and self._deliver_familiar(data):
            return False
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    break
                except HttpParserUpgrade as upgrade:
                    # A parser that has seen no Upgrade reads the body, and what follows it.
                    self._parser = HttpRequestParser(self)
                    data = b"POST / HTTP/1.1\r\n" + self._upgrade + b"\r\n\r\n" + data[upgrade.args[0] :]
        except HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, _Enough):
                return False
            raise (cause or error) from None
        except HttpParserError as error:
            # A parser that resynchronises can be talked into starting anywhere (RFC 9112 §11.2).
            raise Refusal(400, "malformed_request", f"The request is not HTTP/1.1: {error} (RFC 9112).") from None
        return self.phase != IDLE and self._incomplete(len(data))

    def _deliver_familiar(self, data: bytes) -> bool:
        """Deliver the request that `data` is, if that is one whole request behind a familiar head."""
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        found = self._heads.get(head)
        if found is None:
            self._learning = head if self._unfamiliar == hash(head) else b""
            self._unfamiliar = hash(head)
            return False
        if len(data) - end != found.body_size:
            return False
        environ = self._base.copy()
        environ.update(found.members)
        self._tracer.assign(environ)
        environ["wsgi.input"] = BytesIO(data[end:])
        environ[RECEIVED_NS] = monotonic_ns()
        self._deliver(environ, PERSIST)
        return True

    def close(self) -> None:
        """Let go of parser and connection, cycles with this message, and of what was read of a request.

        Such a cycle waits for the collector, which counts objects and not bytes: a thousand closed connections that
        each hold a megabyte would not yet move it. Nothing is fed afterwards.
        """
        del self._parser, self._deliver, self._reserve
        self.forget()

    def forget(self) -> WSGIEnvironment:
        """Let go of what was read of a request that is refused; returns its environ as far as there is one. Nothing is
        fed afterwards.
        """
        environ, self._environ = self._environ, self._base
        self._fields.clear()
        self._body.clear()
        return environ

    @property
    def is_head(self) -> bool:
        """Whether the request being read is a HEAD, whose answer has no content (RFC 9110 §9.3.2)."""
        if self.phase == BODY:  # the parser may be the second one by now, which was told POST
            return bool(self._environ.get("REQUEST_METHOD") == "HEAD")
        # Before the target the parser says the method of an earlier request.
        return self.phase == HEAD and self._target != b"" and self._parser.get_method() == b"HEAD"

    @property
    def body_left(self) -> int:
        """Bytes of the body being read that are still to come, as far as its head tells: no request begins in them."""
        return self._length - self._received if self.phase == BODY and self._length > 0 else 0

    @property
    def named(self) -> WSGIEnvironment:
        """An environ that names the request being read, for whoever refuses it. The names are the client's if the head
        was read and they are sane; otherwise an id is made, a new one each time. So is what proxies say of whom they
        speak for: in a head that ends early their line may be missing, and what is there the client's invention.
        """
        if self.phase == BODY and REQUEST_ID in self._environ:
            return self._environ
        fields = self._fields if self.phase == BODY else []
        named = {**self._base, REQUEST_ID: self._tracer.id_from_fields(fields)}
        hops = b",".join(value for name, value in fields if name.lower() == b"x-forwarded-for")
        if hops:  # in a head that may be refused for its size; the nearest hop is the last
            named["HTTP_X_FORWARDED_FOR"] = hops[-HEADERS_SIZE.value :].decode("latin-1")
        return named

    def take_expectation(self) -> WSGIEnvironment | None:
        """Return, once, the environ of a request whose client waits for 100 Continue: it asked, and no byte of the body
        has come.
        """
        expects, self._expects = self._expects and self.phase == BODY and not self._body, False
        return self._environ if expects else None

    def without_body(self) -> WSGIEnvironment:
        """Return the environ of the request being read as if it were complete and empty. Nothing is fed afterwards:
        where its body would have ended, nobody knows.
        """
        environ = self._environ
        environ["CONTENT_LENGTH"] = "0"
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["wsgi.input"] = BytesIO()
        environ[RECEIVED_NS] = monotonic_ns()
        return environ

    # -- called by the parser ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.phase = HEAD
        self._target = b""
        self._fields = []

    def on_url(self, piece: bytes) -> None:
        self._target += piece
        if len(self._target) > _REQUEST_LINE_SIZE_MAX:
            raise Refusal.over(REQUEST_LINE_SIZE, "A request line")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase == HEAD:  # in a BODY these are trailers
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.phase = BODY
        if self._upgrade:  # the synthetic head has been read; what follows is the body again
            self._upgrade = b""
            return
        parser = self._parser
        method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        # Method, target, "HTTP/1.1" and two spaces.
        if len(method) + len(self._target) + 10 > _REQUEST_LINE_SIZE_MAX:
            raise Refusal.over(REQUEST_LINE_SIZE, "A request line")
        environ = self._environ = self._base.copy()
        environ["SERVER_PROTOCOL"] = "HTTP/" + version
        environ["REQUEST_METHOD"] = method  # before any check, whose refusal has no content if this is HEAD
        add_fields(environ, self._fields)
        self._tracer.assign(environ)
        length = self._length = body_length(environ, version)
        add_target(environ, method, self._target)
        if not parser.should_keep_alive():  # RFC 9112 §9.3
            self._persistence = CLOSE
        else:
            self._persistence = PERSIST if version == "1.1" else KEEP_ALIVE
        learning, self._learning = self._learning, b""
        if learning and self._persistence == PERSIST and 0 <= length <= LARGE_BODY_SIZE:
            self._learn(learning, method)
        if length:
            self._body = []
            self._folded = self._received = self._reserved = 0
            self._expects = "HTTP_EXPECT" in environ
            if length > LARGE_BODY_SIZE:
                self._reserve(0, environ)  # whoever may not send it is told so now
        if parser.should_upgrade():
            self._upgrade = b"Transfer-Encoding: chunked" if length == CHUNKED else b"Content-Length: %d" % length

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)
        self._received += len(piece)
        if self._received > BODY_SIZE.value:
            raise Refusal.over(BODY_SIZE, "A chunked body")
        if self._received > self._reserved + LARGE_BODY_SIZE:
            self._reserve(self._received - self._reserved, self._environ)
            self._reserved = self._received
        if len(self._body) > self._folded + _FOLD_COUNT:
            self._body[self._folded :] = [b"".join(self._body[self._folded :])]
            self._folded += 1

    def on_message_complete(self) -> None:
        if self._upgrade:  # llhttp ends the message where it gives up on HTTP
            return
        environ = self._environ
        if self._length:
            body = self._body
            content = body[0] if len(body) == 1 else b"".join(body)
            self._body = []
            environ["wsgi.input"] = BytesIO(content)
            if self._length == CHUNKED:
                # The body is decoded and complete, so the application is told its length instead of its coding.
                environ["CONTENT_LENGTH"] = str(len(content))
                del environ["HTTP_TRANSFER_ENCODING"]
        else:
            environ["wsgi.input"] = BytesIO()
        environ[RECEIVED_NS] = monotonic_ns()
        # An idle connection holds nothing of its last request: sixteen megabytes of a body would be nobody's account.
        self._environ, self._fields = self._base, []
        self.phase = self._awaited = IDLE
        if not self._deliver(environ, self._persistence):
            raise _Enough

    def _learn(self, head: bytes, method: str) -> None:
        """Let a head be familiar from now on, unless it asks for more than an answer."""
        if self._parser.should_upgrade() or "HTTP_EXPECT" in self._environ or not self._heads.admits_new():
            return
        lines = b"".join(b"%s: %s\r\n" % field for field in self._fields)
        request = method.encode(), self._target, lines
        self._heads.add(head, self._environ, self._base, request, self._length)

    # -- what llhttp leaves to its user ------------------------------------------------------------------------------

    def _incomplete(self, size: int) -> bool:
        """Bound what the parser holds, `size` bytes of which are new; True when the input first ends in this phase."""
        if len(self._fields) > HEADER_COUNT.value:
            raise Refusal.over(HEADER_COUNT, "The head of this request")
        if self.phase != self._awaited:
            self._awaited = self.phase
            self._fed = 0
            return True
        self._fed += size
        if self.phase == HEAD:
            if self._fed > _HEAD_SIZE_MAX:
                raise Refusal.over(HEADERS_SIZE, "The head of this request")
        elif self._length == CHUNKED and self._fed > _CHUNK_SIZE_MIN * self._received + _HEAD_SIZE_MAX:
            raise Refusal.over(HEADERS_SIZE, "What surrounds the chunks of this request")
        return False


class _Enough(Exception):
    """Raised in a callback when no further request is wanted: the only way to stop llhttp inside a buffer."""
