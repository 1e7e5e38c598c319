"""Parses the bytes of one connection into requests, with llhttp (through httptools).

`feed` takes bytes. Each complete request is handed to `deliver` as a WSGI environ from inside `feed`, so that the
application runs in the same turn of the loop. `feed` raises Refusal when the bytes are not a request, or are one that
breaks a rule or a limit; nothing is fed afterwards. A whole request with a cached head bypasses llhttp (`head_cache`).

Owns: the parser, and the target, fields and body that it has delivered so far. It has no code about sockets, deadlines
or the order of answers. The rules for heads are in `app.httpd.framing` and `app.httpd.wsgi_environ`.

Invariants: llhttp bounds nothing, so the bytes that it holds are bounded here: an incomplete head, chunk extensions,
trailers. Trailers are dropped: nothing reads them, and trailers that were merged into the head would bypass all of its
checks (RFC 9112 §7.1.2). A request gets its names (id, trace) when its head is complete; every later refusal is logged
under them.
"""

from collections.abc import Callable
from io import BytesIO
from time import monotonic_ns
from typing import Final
from wsgiref.types import WSGIEnvironment

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from app.httpd.body_decoder import DECODER_SIZE, BodyDecoder, decoder_of
from app.httpd.framing import CHUNKED, body_length
from app.httpd.head_cache import HeadCache
from app.httpd.refusal import Refusal
from app.httpd.request import RECEIVED_NS, REQUEST_ID
from app.httpd.request_names import RequestNames
from app.httpd.response import CLOSE, KEEP_ALIVE, PERSIST
from app.httpd.wsgi_environ import add_fields, add_target
from core.limits import BODY_SIZE, HEADER_COUNT, HEADERS_SIZE, REQUEST_LINE_SIZE

# The phases of a request.
IDLE: Final = 0  # between messages
HEAD: Final = 1
BODY: Final = 2

# Bytes of each body that are not reserved in the budget: the number of connections bounds their sum.
LARGE_BODY_SIZE: Final = 65_536
# This many pieces of a body are joined into one, because a chunk of two bytes takes 43 bytes as a piece (object and
# pointer).
_FOLD_COUNT: Final = 1_024
_REQUEST_LINE_SIZE_MAX: Final = REQUEST_LINE_SIZE.value
# The parser holds the bytes of an incomplete head. A longer one would be refused anyway.
_HEAD_SIZE_MAX: Final = REQUEST_LINE_SIZE.value + HEADERS_SIZE.value + 4
# RFC 9112 §7.1.1 and §7.1.2 bound neither chunk extensions nor trailers. A byte of content takes at most six bytes with
# the frame of its chunk ("1\r\nx\r\n"); everything else together may have the size of a head.
_CHUNK_SIZE_MIN: Final = 6
_UNCACHED: Final = frozenset({"HTTP_EXPECT", "HTTP_CONTENT_ENCODING"})  # fields that only the parser acts on


class RequestParser:
    """Parses one request after another."""

    __slots__ = (
        "_base",
        "_body",
        "_decoder",
        "_deliver",
        "_environ",
        "_expects",
        "_fields",
        "_head_cache",
        "_head_to_cache",
        "_joined_count",
        "_last_phase",
        "_length",
        "_names",
        "_parser",
        "_persistence",
        "_phase_size",
        "_reserve",
        "_reserved_size",
        "_target",
        "_uncached_hash",
        "_upgrade",
        "body_size",
        "phase",
    )  # fmt: skip

    def __init__(
        self,
        base: WSGIEnvironment,
        names: RequestNames,
        head_cache: HeadCache,
        deliver: Callable[[WSGIEnvironment, str], bool],
        reserve: Callable[[int, WSGIEnvironment], None],
    ) -> None:
        """`base` is what all environs of the connection share; `names` gives requests their names.

        `deliver(environ, persistence)` takes each request and the persistence that it asks for (PERSIST, KEEP_ALIVE or
        CLOSE) and returns whether more requests are wanted. `reserve(size, environ)` is called before `size` more bytes
        of a large body are kept, and with 0 when a head announces a large body. `feed` raises again what `reserve`
        raises.
        """
        self.phase = IDLE
        self._base = self._environ = base
        self._names = names
        self._head_cache = head_cache
        self._uncached_hash = 0  # of the last head that was not in the cache
        self._head_to_cache = b""  # the head that is being fed, if the connection has sent it twice in a row
        self._deliver = deliver
        self._reserve = reserve
        self._parser = HttpRequestParser(self)
        self._last_phase = IDLE  # the phase in which the last feed ended
        self._phase_size = 0  # bytes fed since that feed, in the same phase
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._joined_count = 0  # how many pieces at the start of `_body` are joined already
        self._length = 0
        self._decoder: BodyDecoder | None = None  # of the body that is being read, if it has a content coding
        self.body_size = 0  # bytes of the body that have arrived, decoded
        self._reserved_size = 0  # bytes of it that were reserved
        self._expects = False
        self._upgrade = b""  # the framing of a request whose Upgrade is ignored
        self._persistence = PERSIST

    def feed(self, data: bytes | memoryview) -> bool:
        """Parse `data`, delivering each request that it completes.

        Returns True when `data` ends inside a head or body that it began, so that a new deadline begins.
        Raises Refusal.
        """
        if self.phase == IDLE and type(data) is bytes and self._deliver_cached(data):
            return False
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    break
                except HttpParserUpgrade as upgrade:
                    # llhttp stops behind a head that asks for an upgrade. A new parser is fed a head with the same
                    # framing and no Upgrade, so it reads the body and what follows.
                    self._parser = HttpRequestParser(self)
                    data = b"POST / HTTP/1.1\r\n" + self._upgrade + b"\r\n\r\n" + data[upgrade.args[0] :]
        except HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, _StopParsing):
                return False
            raise (cause or error) from None
        except HttpParserError as error:
            # Never search for the next request: the client could choose where it begins (RFC 9112 §11.2).
            raise Refusal(400, "malformed_request", f"The request is not HTTP/1.1: {error} (RFC 9112).") from None
        return self.phase != IDLE and self._check_incomplete(len(data))

    def _deliver_cached(self, data: bytes) -> bool:
        """Deliver `data` if it is exactly one request whose head is cached; return whether it was."""
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        found = self._head_cache.get(head)
        if found is None:
            self._head_to_cache = head if self._uncached_hash == hash(head) else b""
            self._uncached_hash = hash(head)
            return False
        if len(data) - end != found.body_size:
            return False
        environ = self._base.copy()
        environ.update(found.members)
        self._names.assign(environ)
        environ["wsgi.input"] = BytesIO(data[end:])
        environ[RECEIVED_NS] = monotonic_ns()
        self._deliver(environ, PERSIST)
        return True

    def close(self) -> None:
        """Drop the llhttp parser, the callbacks and what was read of a request. Nothing is fed afterwards.

        They refer to this object, and only the garbage collector frees such a cycle. It counts objects, not bytes: a
        thousand closed connections with a megabyte each would not start it.
        """
        del self._parser, self._deliver, self._reserve
        self.drop_request()

    def drop_request(self) -> WSGIEnvironment:
        """Drop what was read of a request that is refused. Nothing is fed afterwards.

        Returns its environ, or that of the connection while its head is incomplete.
        """
        environ, self._environ = self._environ, self._base
        self._fields.clear()
        self._body.clear()
        self._decoder = None
        return environ

    @property
    def is_head(self) -> bool:
        """Whether the request being read is a HEAD, whose answer has no content (RFC 9110 §9.3.2)."""
        if self.phase == BODY:  # the parser may be the second one (see `feed`), which has read POST
            return bool(self._environ.get("REQUEST_METHOD") == "HEAD")
        # Before the target is complete, the parser has the method of an earlier request.
        return self.phase == HEAD and self._target != b"" and self._parser.get_method() == b"HEAD"

    @property
    def body_size_left(self) -> int:
        """Bytes that are still to come of the body being read, in which no request begins.

        0 if it is chunked; and if it is inflated, because a few of its bytes may hold as much as a whole read.
        """
        is_announced = self.phase == BODY and self._length > 0 and self._decoder is None
        return self._length - self.body_size if is_announced else 0

    @property
    def is_inflating(self) -> bool:
        """Whether the body being read has a content coding."""
        return self._decoder is not None

    @property
    def _received_size(self) -> int:
        """Bytes of the body that have arrived, as they were sent."""
        return self.body_size if self._decoder is None else self._decoder.received_size

    @property
    def body_pieces_count(self) -> int:
        """The number of pieces in which the body is kept."""
        return len(self._body)

    @property
    def refused_environ(self) -> WSGIEnvironment:
        """An environ that names the request being read, for its refusal.

        Once the head is complete, it has the client's names if they are valid, and the end of X-Forwarded-For.
        Otherwise it has a new id each time: in an incomplete head the proxy's line may be missing, and a line that is
        there may have been written by the client.
        """
        if self.phase == BODY and REQUEST_ID in self._environ:
            return self._environ
        fields = self._fields if self.phase == BODY else []
        named = {**self._base, REQUEST_ID: self._names.id_from_fields(fields)}
        hops = b",".join(value for name, value in fields if name.lower() == b"x-forwarded-for")
        if hops:  # the nearest hop is the last; the whole line may be too large
            named["HTTP_X_FORWARDED_FOR"] = hops[-HEADERS_SIZE.value :].decode("latin-1")
        return named

    def pop_expectation(self) -> WSGIEnvironment | None:
        """Return the environ of the request being read if its client waits for 100 Continue, else None.

        A client waits if it has sent Expect and no byte of the body has arrived. A second call returns None.
        """
        expects, self._expects = self._expects and self.phase == BODY and not self._body, False
        return self._environ if expects else None

    def end_body(self) -> WSGIEnvironment:
        """Return the environ of the request being read as if its body were complete and empty.

        Nothing is fed afterwards, because it is unknown where the body would have ended.
        """
        environ = self._environ
        environ["CONTENT_LENGTH"] = "0"
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ.pop("HTTP_CONTENT_ENCODING", None)
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
        environ["REQUEST_METHOD"] = method  # before the checks: the refusal of a HEAD has no content
        add_fields(environ, self._fields)
        self._names.assign(environ)
        length = self._length = body_length(environ, version)
        add_target(environ, method, self._target)
        if not parser.should_keep_alive():  # RFC 9112 §9.3
            self._persistence = CLOSE
        else:
            self._persistence = PERSIST if version == "1.1" else KEEP_ALIVE
        head, self._head_to_cache = self._head_to_cache, b""
        if head and self._persistence == PERSIST and 0 <= length <= LARGE_BODY_SIZE:
            self._cache_head(head, method)
        if length:
            self._body = []
            self._joined_count = self.body_size = self._reserved_size = 0
            self._expects = "HTTP_EXPECT" in environ
            if "HTTP_CONTENT_ENCODING" in environ:
                self._decoder = decoder_of(environ["HTTP_CONTENT_ENCODING"])
            if "HTTP_CONTENT_RANGE" in environ:
                raise Refusal(
                    400, "content_range_unsupported",
                    "A body must be whole; this server does not put parts together (RFC 9110 §14.5).",
                )  # fmt: skip
            if self._decoder is not None:
                self._reserve(DECODER_SIZE, environ)
            elif length > LARGE_BODY_SIZE:
                self._reserve(0, environ)  # refuses at once a client that may not send it
        if parser.should_upgrade():
            self._upgrade = b"Transfer-Encoding: chunked" if length == CHUNKED else b"Content-Length: %d" % length

    def on_body(self, piece: bytes, *, is_decoded: bool = False) -> None:
        if self._decoder is not None and not is_decoded:
            self._expects = False
            for decoded in self._decoder.decode(piece):
                self.on_body(decoded, is_decoded=True)
            return
        self._body.append(piece)
        self.body_size += len(piece)
        if self.body_size > BODY_SIZE.value:
            raise Refusal.over(BODY_SIZE, "A body of unannounced size")
        if self.body_size > self._reserved_size + LARGE_BODY_SIZE:
            if self._length == CHUNKED or self._decoder is not None:
                self._environ["CONTENT_LENGTH"] = str(self.body_size)  # at least; the application may refuse it now
            self._reserve(self.body_size - self._reserved_size, self._environ)
            self._reserved_size = self.body_size
        if len(self._body) > self._joined_count + _FOLD_COUNT:
            self._body[self._joined_count :] = [b"".join(self._body[self._joined_count :])]
            self._joined_count += 1

    def on_message_complete(self) -> None:
        if self._upgrade:  # llhttp also calls this at the end of a head that asks for an upgrade
            return
        environ = self._environ
        if self._length:
            body = self._body
            content = body[0] if len(body) == 1 else b"".join(body)
            self._body = []
            environ["wsgi.input"] = BytesIO(content)
            if self._length == CHUNKED or self._decoder is not None:
                # The body is complete and decoded, so the application is told its length instead of its codings.
                if self._decoder is not None:
                    self._decoder.finish()
                environ["CONTENT_LENGTH"] = str(len(content))
                environ.pop("HTTP_TRANSFER_ENCODING", None)
                environ.pop("HTTP_CONTENT_ENCODING", None)
                self._decoder = None
        else:
            environ["wsgi.input"] = BytesIO()
        environ[RECEIVED_NS] = monotonic_ns()
        # An idle connection must not keep its last request: a body of 16 MB would be in no budget.
        self._environ, self._fields = self._base, []
        self.phase = self._last_phase = IDLE
        if not self._deliver(environ, self._persistence):
            raise _StopParsing

    def _cache_head(self, head: bytes, method: str) -> None:
        """Add a head to the cache, unless it asks for an upgrade or for 100 Continue, or its body has a coding."""
        if (
            self._parser.should_upgrade()
            or not _UNCACHED.isdisjoint(self._environ)
            or not self._head_cache.admits_new()
        ):
            return
        lines = b"".join(b"%s: %s\r\n" % field for field in self._fields)
        request = method.encode(), self._target, lines
        self._head_cache.add(head, self._environ, self._base, request, self._length)

    # -- what llhttp does not bound ------------------------------------------------------------------------------

    def _check_incomplete(self, size: int) -> bool:
        """Bound the bytes that the parser holds; `size` of them are new.

        Returns True when the last feed ended in another phase. Raises Refusal.
        """
        if len(self._fields) > HEADER_COUNT.value:
            raise Refusal.over(HEADER_COUNT, "The head of this request")
        if self.phase != self._last_phase:
            self._last_phase = self.phase
            self._phase_size = 0
            return True
        self._phase_size += size
        if self.phase == HEAD:
            if self._phase_size > _HEAD_SIZE_MAX:
                raise Refusal.over(HEADERS_SIZE, "The head of this request")
        elif self._length == CHUNKED and self._phase_size > _CHUNK_SIZE_MIN * self._received_size + _HEAD_SIZE_MAX:
            raise Refusal.over(HEADERS_SIZE, "The chunk framing of this request, extensions and trailers included,")
        return False


class _StopParsing(Exception):
    """Raised in a callback when no further request is wanted. There is no other way to stop llhttp inside a buffer."""
