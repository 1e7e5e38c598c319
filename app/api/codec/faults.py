"""Faults: what is wrong with a value, found by a walk over its bytes, as a problem that names field and cause.

Parsers report where they stopped, which is often not the cause: NaN is an "invalid character" to them, and half a
surrogate pair a text that is "truncated". So a refused body is walked again, in native code (native/json_walk.c,
native/msgpack_walk.c), which costs less than parsing it did.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from app.api.codec._native import ffi, lib
from app.api.codec.media_types import JSON
from app.api.problem import Problem, invalid
from core.limits import PAYLOAD_DEPTH

if TYPE_CHECKING:
    from app.api.codec._native import WalkPointer as Walk

NAMES: Final = lib.MLSDM_WALK_NAMES  # refuse repeated names in an object
STRICT: Final = lib.MLSDM_WALK_STRICT  # refuse what other readers of JSON may not read back
_NAME_LENGTH_MAX: Final = 40  # characters of a name, or of what a client sent, that are quoted
_FIELD_LENGTH_MAX: Final = 120  # characters
_OF_PAYLOAD: Final = re.compile(r"(\[\d+\]\.)?payload\b")
_NUMBER_EXPECTED: Final = "a number without a plus sign or leading zeros, with a digit on both sides of a point"
_ESCAPES: Final = r"one of \" \\ \/ \b \f \n \r \t and \u with four hexadecimal digits"
_WHOLE_EXPECTED: Final = f"a whole number from {-(2**63)} to {2**64 - 1}, or a string"
# Bodies that are no JSON from their first bytes on, and what they are.
_BEGINNINGS: Final = (
    (b"\xef\xbb\xbf", "begins with a byte order mark", "JSON in UTF-8 without a byte order mark"),
    (b"\xff\xfe", "is UTF-16 or UTF-32", "JSON in UTF-8"),
    (b"\xfe\xff", "is UTF-16 or UTF-32", "JSON in UTF-8"),
    (b"\0\0\xfe\xff", "is UTF-16 or UTF-32", "JSON in UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip", "the field Content-Encoding: gzip, or JSON that is not compressed"),
)


class Fault(NamedTuple):
    """One fault in the bytes of a value."""

    kind: int  # enum mlsdm_fault of native/api.h
    field: str  # the path to the value at fault, "" for the whole
    offset: int  # of the first byte at fault
    token: bytes  # the bytes at fault


class _Sentence(NamedTuple):
    code: str  # malformed_body: 400; else 422
    detail: str  # {token}: what was found; {at}: where
    expected: str


_SENTENCES: Final = {
    lib.MLSDM_FAULT_TRUNCATED: _Sentence("malformed_body", "ends too early, at {at}", "the rest of it"),
    lib.MLSDM_FAULT_NO_VALUE: _Sentence("malformed_body", "has {token} at {at}", "a JSON value there"),
    lib.MLSDM_FAULT_NO_NAME: _Sentence(
        "malformed_body", "has {token} at {at}", "the name of a member there, in double quotes"
    ),
    lib.MLSDM_FAULT_NO_COLON: _Sentence("malformed_body", "has {token} at {at}", "a colon after the name"),
    lib.MLSDM_FAULT_NO_COMMA: _Sentence("malformed_body", "has {token} at {at}", "a comma or the closing bracket"),
    lib.MLSDM_FAULT_NO_END: _Sentence("malformed_body", "has {token} at {at}", "nothing after the value"),
    lib.MLSDM_FAULT_NAN: _Sentence("malformed_body", "is {token}, which JSON cannot express", "a finite number"),
    lib.MLSDM_FAULT_NUMBER: _Sentence(
        "malformed_body", "begins with {token}, which is no JSON number", _NUMBER_EXPECTED
    ),
    lib.MLSDM_FAULT_CONTROL: _Sentence(
        "malformed_body", "has {token} at {at}", "control characters to be escaped"
    ),
    lib.MLSDM_FAULT_ESCAPE: _Sentence("malformed_body", "has the escape {token} at {at}", _ESCAPES),
    lib.MLSDM_FAULT_NOT_UTF8: _Sentence("malformed_body", "has {token} at {at}, which is not UTF-8", "UTF-8"),
    lib.MLSDM_FAULT_RESERVED: _Sentence(
        "malformed_body", "has {token} at {at}, which msgpack never uses", "msgpack"
    ),
    lib.MLSDM_FAULT_SURROGATE: _Sentence(
        "", "has half of a surrogate pair, {token}, at {at}", "both halves, or the character itself"
    ),
    lib.MLSDM_FAULT_DEPTH: _Sentence("", "is nested too deeply", f"at most {PAYLOAD_DEPTH.value} {PAYLOAD_DEPTH.unit}"),
    lib.MLSDM_FAULT_REPEATED: _Sentence("field_repeated", "is named more than once", "each member once"),
    lib.MLSDM_FAULT_WHOLE_RANGE: _Sentence("", "is {token}, a whole number beyond 64 bits", _WHOLE_EXPECTED),
    lib.MLSDM_FAULT_FLOAT_RANGE: _Sentence(
        "", "is {token}, which is beyond float64", "a number of magnitude at most 1.7976931348623157e308"
    ),
    lib.MLSDM_FAULT_NUMBER_LONG: _Sentence("", "is a number of {size} characters", "at most 1000 characters"),
    lib.MLSDM_FAULT_NOT_FINITE: _Sentence("", "is NaN or infinite, which JSON cannot express", "a finite number"),
    lib.MLSDM_FAULT_BIN: _Sentence("", "is a bin, which JSON cannot express", "a str, such as base64"),
    lib.MLSDM_FAULT_EXTENSION: _Sentence("", "is an extension type, which JSON cannot express", "another type"),
    lib.MLSDM_FAULT_TIMESTAMP: _Sentence(
        "", "is a timestamp, which JSON cannot express", "a str, such as RFC 3339, or a number"
    ),
    lib.MLSDM_FAULT_KEY: _Sentence("", "has a key that is not a str, which JSON cannot express", "keys of type str"),
}  # fmt: skip


def find_fault(body: bytes, media: str, flags: int = 0, depth_max: int = lib.MLSDM_DEPTH_MAX) -> Fault | None:
    """Return the first fault of a value in JSON, or else in msgpack; None if there is none. `flags`: NAMES, STRICT."""
    walk = ffi.new("struct mlsdm_walk *")
    if media == JSON:
        sound = lib.mlsdm_walk_json(body, len(body), flags, depth_max, ffi.NULL, 0, walk)
    else:
        sound = lib.mlsdm_walk_msgpack(body, len(body), flags, depth_max, walk)
    return None if sound else fault_of(walk, body, media)


def fault_of(walk: "Walk", body: bytes, media: str) -> Fault:
    """Return the fault that a walk over `body` has found. Raises MemoryError if it could not finish."""
    if walk.kind == lib.MLSDM_FAULT_NO_MEMORY:
        raise MemoryError
    field = ""
    for i in range(walk.depth):
        step = walk.path[i]
        if walk.kind == lib.MLSDM_FAULT_DEPTH and (i == 2 or field.count(".")):
            break  # which member it is tells more than sixty brackets
        if not step.is_member:
            field += f"[{step.index}]"
        elif step.name:
            field += "." + _name(body[step.name : step.name + step.name_size], media)[:_NAME_LENGTH_MAX]
    if len(field) > _FIELD_LENGTH_MAX:
        field = field[:_FIELD_LENGTH_MAX] + "…"
    return Fault(walk.kind, field.lstrip("."), walk.offset, body[walk.offset : walk.offset + walk.size])


def _name(name: bytes, media: str) -> str:
    """Return a name that a walk has found sound."""
    return str(msgspec.json.decode(b'"' + name + b'"')) if media == JSON else name.decode()


def problem_of_fault(fault: Fault, body: bytes, media: str, prefix: str = "") -> Problem:
    """Return the problem of a fault in `body`; `prefix` is the path to the value that was walked."""
    code, detail, expected = _SENTENCES[fault.kind]
    field = (prefix + ("" if fault.field.startswith("[") or not fault.field else ".") + fault.field).lstrip(".")
    if not prefix and fault.offset == 0:
        found = next(((said, wanted) for start, said, wanted in _BEGINNINGS if body.startswith(start)), None)
        detail, expected = found if found and media == JSON else (detail, expected)
    if not prefix and not body.strip():
        detail, expected = "is empty", "JSON" if media == JSON else "msgpack"
    detail = detail.format(
        token=_quote(fault.token, body[fault.offset :]), at=_place(fault, prefix), size=len(fault.token)
    )
    if code == "malformed_body":
        named = field or "body"
        return Problem(400, "malformed_body", f"{named}: {detail}; expected {expected}", field=named, expected=expected)
    return invalid(field or "body", code or ("payload_invalid" if _OF_PAYLOAD.match(field) else "field_invalid"),
                   detail, expected)  # fmt: skip


def _quote(token: bytes, rest: bytes) -> str:
    """Return how a sentence names the bytes at fault; `rest` begins with them."""
    if len(token) > 1:
        return token[:_NAME_LENGTH_MAX].decode(errors="replace") + ("…" if len(token) > _NAME_LENGTH_MAX else "")
    character = rest[:4].decode(errors="ignore")[:1]
    if character.encode() != rest[: len(character.encode())] or not character or ord(character) < 0x20:
        return f"the byte 0x{rest[0]:02x}" if rest else ""
    return repr(character)


def _place(fault: Fault, prefix: str) -> str:
    """Return where a fault is, in words."""
    whole = "payload" if prefix.endswith("payload") else "item" if prefix else "body"
    return f"byte {fault.offset} of the {whole}"
