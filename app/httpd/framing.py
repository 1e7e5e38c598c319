"""Where the body of a request ends, and the refusals of requests whose framing is wrong or ambiguous.

llhttp (through httptools) is strict about bytes, not about meaning. It accepts a missing or second Host,
Transfer-Encoding on HTTP/1.0, codings other than chunked, HTTP/2.0 as a version. Each of these lets two parsers
read different requests (request smuggling), or makes the server hold memory. `body_length` checks these rules on a WSGI
environ whose fields are decoded.

Invariants: a framing error is never repaired. The client gets one answer with `Connection: close`, and no later byte is
interpreted. A parser that resynchronises would let an attacker choose the byte at which it starts (RFC 9112 §11.2).

What llhttp refuses itself, and the three leniencies that stay: docs/design/request-parsing.md. Each rule with its test:
docs/http.md.
"""

import re
from functools import lru_cache
from typing import Final
from wsgiref.types import WSGIEnvironment

from app.httpd.refusal import Refusal
from core.limits import BODY_SIZE, CONTENT_LENGTH_DIGITS

_DIGITS_MAX: Final = CONTENT_LENGTH_DIGITS.value
_BODY_SIZE_MAX: Final = BODY_SIZE.value
CHUNKED: Final = -1  # the length of a body that ends with its last chunk


def body_length(environ: WSGIEnvironment, version: str) -> int:
    """Check the framing and return the length of the body in bytes: 0 without a body, CHUNKED when it is not known.

    `environ` contains the decoded fields; `version` is the parser's, such as "1.1". Removes the Expect of an HTTP/1.0
    request, so that HTTP_EXPECT means afterwards that the client waits for 100 Continue. Raises Refusal.
    """
    host = environ.get("HTTP_HOST")
    if version != "1.1" or host is None:
        _check_version(version)
    # RFC 9112 §3.2: an invalid Host is refused in every version. `wsgi_environ.add_fields` has refused a second one.
    if host is not None and not is_valid_host(host):
        raise Refusal(400, "host_invalid", "Host must be a name or an address, with an optional port (RFC 9112 §3.2).")
    if "HTTP_EXPECT" in environ:
        _check_expect(environ, version)
    if "HTTP_TRANSFER_ENCODING" in environ:
        return _check_transfer_encoding(environ, version)
    length = environ.get("CONTENT_LENGTH")
    return 0 if length is None else _check_content_length(length)


def _check_version(version: str) -> None:
    """Refuse a request that is neither HTTP/1.1 with a Host nor HTTP/1.0 (RFC 9112 §2.3 and §3.2)."""
    if version == "1.1":
        raise Refusal(400, "host_missing", "An HTTP/1.1 request must carry one Host field (RFC 9112 §3.2).")
    if version != "1.0":
        # RFC 9110 §15.6.6. llhttp accepts HTTP/0.9 and a literal "HTTP/2.0".
        raise Refusal(505, "http_version_unsupported", f"HTTP/{version} is not supported here; use HTTP/1.1.")


# RFC 3986 §3.2.2: a registered name, an IPv4 address or an IPv6 address in brackets; no user information (RFC 9110
# §4.2.4) and no empty name.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9\-._~!$&'()*+,;=%]{1,255})(?::[0-9]{0,5})?")


@lru_cache(maxsize=256)  # PERF: 50 ns instead of 300; clients use only a few names for one server
def is_valid_host(host: str) -> bool:
    """Return whether `host` is valid in a Host field and in the authority of an absolute target."""
    return _HOST.fullmatch(host) is not None


def _check_expect(environ: WSGIEnvironment, version: str) -> None:
    """Refuse all expectations but 100-continue; drop the field of an HTTP/1.0 request (RFC 9110 §10.1.1)."""
    if version == "1.0":
        del environ["HTTP_EXPECT"]
    elif environ["HTTP_EXPECT"].lower() != "100-continue":
        raise Refusal(
            417,
            "expectation_failed",
            "The only expectation that this server supports is 100-continue (RFC 9110 §10.1.1).",
        )


def _check_transfer_encoding(environ: WSGIEnvironment, version: str) -> int:
    """Accept chunked as the only coding, on HTTP/1.1 only, without a Content-Length (RFC 9112 §6.1 and §6.3)."""
    if version == "1.0":
        raise Refusal(
            400,
            "transfer_encoding_on_http_1_0",
            "An HTTP/1.0 request must not carry Transfer-Encoding (RFC 9112 §6.1).",
        )
    if "CONTENT_LENGTH" in environ:
        raise Refusal(
            400,
            "framing_ambiguous",
            "A request must not carry both Content-Length and Transfer-Encoding (RFC 9112 §6.3).",
        )
    codings = [coding.strip(" \t").lower() for coding in environ["HTTP_TRANSFER_ENCODING"].split(",")]
    if codings == ["chunked"]:
        return CHUNKED
    if codings[-1] != "chunked" or codings.count("chunked") > 1:
        raise Refusal(
            400,
            "transfer_encoding_invalid",
            "Chunked must be the last transfer coding, and must be applied once (RFC 9112 §6.3).",
        )
    raise Refusal(
        501, "transfer_coding_unknown", "The only transfer coding that this server supports is chunked (RFC 9112 §6.1)."
    )


def _check_content_length(length: str) -> int:
    """Return the length as a number (RFC 9110 §8.6). A body over the limit is refused before any of it is read.

    Numbers of more than ten digits are sent only to overflow a counter.
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
