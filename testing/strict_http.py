"""A strict reader of HTTP/1.1, to compare with the server's: where each request ends, and whether an answer is valid.

It is written from RFC 9112 alone, with regular expressions on complete bytes, and shares neither code nor method with
the server's parser: where two parsers disagree about an end, a request can be smuggled. It has no limits, and returns
None for everything that the grammar does not allow.

Three allowances match the server's documentation: several spaces around the target (§3 lets a recipient split on white
space), CR and LF in any order before a request line (§2.2: ignore empty lines there), and RTSP in place of HTTP. None
of them moves an end into or out of a request.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rb"(%s) +([!-~]+) +(?:HTTP|RTSP)/(1\.[01])\r\n" % _TOKEN)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [\t !-~]*\r\n")
_FIELD: Final = re.compile(rb"(%s):[ \t]*([!-~\x80-\xff\t ]*?)[ \t]*\r\n" % _TOKEN)
# §7.1.1: recipients ignore extensions, so inside one anything but a line break will do.
_CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[^\r\n]*)?\r\n")
_END: Final = b"\r\n"


class Request(NamedTuple):
    """One request; `end` is the offset of the byte behind it."""

    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    end: int


class Answer(NamedTuple):
    """One answer; names of fields in lower case."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes


def read_request(wire: bytes, at: int) -> Request | None:
    """Return the request that begins at offset `at`, or None when there is none that is complete and valid."""
    while wire[at : at + 1] in {b"\r", b"\n"}:
        at += 1
    line = _REQUEST_LINE.match(wire, at)
    read = line and _read_fields(wire, line.end())
    if line is None or read is None:
        return None
    fields, at = read
    method, target, version = line.groups()
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if len([name for name, _ in fields if name == b"host"]) > 1 or (
        version == b"1.1" and not dict(fields).get(b"host")
    ):
        return None  # §3.2
    if codings:
        if lengths or version == b"1.0" or [coding.lower() for coding in codings] != [b"chunked"]:
            return None  # §6.1 and §6.3; no other coding is supported
        chunked = _read_chunks(wire, at)
        return chunked and Request(method, target, version, fields, *chunked)
    if not lengths:
        return Request(method, target, version, fields, b"", at)
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]+", lengths[0]):
        return None  # §6.3, RFC 9110 §8.6
    end = at + int(lengths[0])
    return Request(method, target, version, fields, wire[at:end], end) if end <= len(wire) else None


def _read_fields(wire: bytes, at: int) -> tuple[list[tuple[bytes, bytes]], int] | None:
    """Return the fields of a head or trailer section and the offset behind its empty line."""
    fields = []
    while not wire.startswith(_END, at):
        field = _FIELD.match(wire, at)
        if field is None:
            return None
        fields.append((field[1].lower(), field[2]))
        at = field.end()
    return fields, at + 2


def _read_chunks(wire: bytes, at: int) -> tuple[bytes, int] | None:
    """Return a chunked body and the offset behind it (§7.1)."""
    body = b""
    while True:
        head = _CHUNK_HEAD.match(wire, at)
        if head is None:
            return None
        size, at = int(head[1], 16), head.end()
        if size == 0:
            trailers = _read_fields(wire, at)
            return trailers and (body, trailers[1])
        if not wire.startswith(_END, at + size):
            return None
        body, at = body + wire[at : at + size], at + size + 2


def read_answers(wire: bytes, methods: Sequence[str]) -> list[Answer]:
    """Return the answers that `wire` consists of, interim ones included; AssertionError when it is anything else.

    `methods` are those of the requests, in order. An answer beyond them is a refusal, which may be one of a HEAD: then
    nothing follows it.
    """
    answers: list[Answer] = []
    at = finals = 0
    while at < len(wire):
        line = _STATUS_LINE.match(wire, at)
        assert line is not None, f"no status line at {wire[at : at + 80]!r}"
        read = _read_fields(wire, line.end())
        assert read is not None, f"no head at {wire[at : at + 400]!r}"
        (fields, at), status, body = read, int(line[1]), b""
        names = [name for name, _ in fields]
        assert len(set(names)) == len(names), f"a field stands twice among {names}"
        if status >= 200:
            head = methods[finals] == "HEAD" if finals < len(methods) else at == len(wire)
            if not head:  # to HEAD a length may be left out (RFC 9110 §8.6)
                size = int(dict(fields)[b"content-length"])
                body, at = wire[at : at + size], at + size
                assert len(body) == size, "an answer is shorter than it says"
            finals += 1
        answers.append(Answer(status, fields, body))
    return answers
