"""Framing: where a request begins and ends, and every reason to refuse to find out.

Owns `Refusal` (the one exception by which a connection gives up on a request) and the guards that stand between
llhttp and the application. It holds no state and touches no socket: it is handed a WSGI environ whose fields are
already decoded, and answers with the length of the body or raises.

Why there are guards at all: llhttp (through httptools) is strict about bytes but not about meaning. It accepts a
missing or a second Host, Transfer-Encoding on HTTP/1.0, HTTP/2.0 spelled as a version, codings other than chunked, a
fragment in the target, and any number of fields of any size. Each of those is either a smuggling primitive (two
parsers see two different requests) or a way to make the server hold memory. A framing error is never repaired: one
answer, `Connection: close`, and nothing after it is believed, because a parser that resynchronises is a parser that
can be talked into starting at a byte of the attacker's choice (RFC 9112 §11.2).

What llhttp already refuses by itself (each has its test all the same): bare CR or LF, obs-fold, white space before a
colon, control characters, a Content-Length that is signed, listed, repeated or overflows, Content-Length beside
Transfer-Encoding, chunk sizes that are not plain hexadecimal, bytes outside ASCII in the target.

NOTE: three harmless leniencies of llhttp cannot be seen from its callbacks and stand: several spaces around the target
(RFC 9112 §3 allows it), a bare CR or LF before a request line (§2.2 speaks of empty lines; none of these bytes can be
part of a request, so it still begins where it begins), and `RTSP/1.0` in the place of `HTTP/1.0`.
"""

import re
from functools import lru_cache
from typing import Final
from wsgiref.types import WSGIEnvironment

from core.limits import BODY_SIZE, CONTENT_LENGTH_DIGITS, Limit

_DIGITS_MAX: Final = CONTENT_LENGTH_DIGITS.value
_BODY_SIZE_MAX: Final = BODY_SIZE.value
CHUNKED: Final = -1  # a body whose length only its last chunk tells


class Refusal(Exception):
    """The request is refused: one problem document, then the connection closes.

    `status` is the HTTP status, `code` the stable name under which it is counted, `detail` a sentence for the
    client's author; `retry_after` in seconds when the client did nothing wrong and may come back, else 0.
    """

    def __init__(self, status: int, code: str, detail: str, *, retry_after: int = 0) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after

    @classmethod
    def over(cls, limit: Limit, what: str) -> "Refusal":
        """Refuse because `what` passed `limit`."""
        return cls(limit.status, limit.code, f"{what} is more than the {limit.value} {limit.unit} this server takes.")


def body_length(environ: WSGIEnvironment, version: str) -> int:
    """Return the number of bytes of the body that follows, or CHUNKED; 0 when there is none.

    `environ` holds the decoded fields, `version` is "1.1" or what else the parser read. Raises Refusal. An Expect
    that HTTP/1.0 must not carry is removed, so that afterwards HTTP_EXPECT in environ means: the client waits for 100
    Continue.
    """
    host = environ.get("HTTP_HOST")
    if version != "1.1" or host is None:
        _check_version(version)
    # RFC 9112 §3.2: a Host must be valid wherever it stands; that there is no second one was seen when the fields
    # were read.
    if host is not None and not is_valid_host(host):
        raise Refusal(400, "host_invalid", "Host is not a name or address with an optional port (RFC 9112 §3.2).")
    if "HTTP_EXPECT" in environ:
        _check_expect(environ, version)
    if "HTTP_TRANSFER_ENCODING" in environ:
        return _check_transfer_encoding(environ, version)
    length = environ.get("CONTENT_LENGTH")
    return 0 if length is None else _check_content_length(length)


def _check_version(version: str) -> None:
    """A request that is not 1.1, or has no Host: only 1.0 may be either (RFC 9112 §2.3 and §3.2)."""
    if version == "1.1":
        raise Refusal(400, "host_missing", "An HTTP/1.1 request must carry one Host field (RFC 9112 §3.2).")
    if version != "1.0":
        # RFC 9110 §15.6.6. HTTP/0.9 and a literal "HTTP/2.0" both parse; neither is spoken here.
        raise Refusal(505, "http_version_unsupported", f"HTTP/{version} is not spoken here; use HTTP/1.1.")


# RFC 3986 §3.2.2: a registered name, an IPv4 address or a bracketed IPv6 address; no user information (RFC 9110
# §4.2.4), no empty name.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9\-._~!$&'()*+,;=%]{1,255})(?::[0-9]{0,5})?")


@lru_cache(maxsize=256)  # clients of one service name it in a few ways; the cache makes the check 50 ns instead of 300
def is_valid_host(host: str) -> bool:
    """Say whether `host` can stand in a Host field or in the authority of an absolute target."""
    return _HOST.fullmatch(host) is not None


def _check_expect(environ: WSGIEnvironment, version: str) -> None:
    """RFC 9110 §10.1.1: 100-continue is the only expectation, and HTTP/1.0 gets no interim response."""
    if version == "1.0":
        del environ["HTTP_EXPECT"]
    elif environ["HTTP_EXPECT"].lower() != "100-continue":
        raise Refusal(
            417, "expectation_failed", "The only expectation this server knows is 100-continue (RFC 9110 §10.1.1)."
        )


def _check_transfer_encoding(environ: WSGIEnvironment, version: str) -> int:
    """RFC 9112 §6.1 and §6.3: chunked alone, on HTTP/1.1 alone, and never beside a Content-Length."""
    if version == "1.0":
        raise Refusal(400, "transfer_encoding_on_http_1_0", "HTTP/1.0 has no Transfer-Encoding (RFC 9112 §6.1).")
    if "CONTENT_LENGTH" in environ:
        raise Refusal(
            400, "framing_ambiguous", "Content-Length and Transfer-Encoding exclude each other (RFC 9112 §6.3)."
        )
    codings = [coding.strip(" \t").lower() for coding in environ["HTTP_TRANSFER_ENCODING"].split(",")]
    if codings == ["chunked"]:
        return CHUNKED
    if codings[-1] != "chunked" or codings.count("chunked") > 1:
        raise Refusal(
            400, "transfer_encoding_invalid", "The last transfer coding must be chunked, once (RFC 9112 §6.3)."
        )
    raise Refusal(
        501, "transfer_coding_unknown", "The only transfer coding this server knows is chunked (RFC 9112 §6.1)."
    )


def _check_content_length(length: str) -> int:
    """RFC 9110 §8.6: plain digits; more than ten of them exist only to wrap a counter. 413 before a byte of the body
    is read.
    """
    if not (length.isascii() and length.isdigit()) or len(length) > _DIGITS_MAX:
        raise Refusal(
            CONTENT_LENGTH_DIGITS.status,
            CONTENT_LENGTH_DIGITS.code,
            f"Content-Length must be 1 to {CONTENT_LENGTH_DIGITS.value} decimal digits (RFC 9110 §8.6).",
        )
    size = int(length)
    if size > _BODY_SIZE_MAX:
        raise Refusal.over(BODY_SIZE, f"A body of {size} bytes")
    return size
