"""Body errors: turn what msgspec finds wrong with a body into a problem that names field, cause and expectation.

Status 400 if the bytes are not JSON or msgpack at all, 422 if they are and a value is wrong. msgspec finds wrong types,
ranges and names; where it cannot read the bytes, a walk finds the cause (`app.api.codec.faults`).
"""

import re
from collections.abc import Mapping
from typing import Final, NoReturn, TypeAlias

import msgspec

from app.api.codec.faults import NAMES, find_fault, problem_of_fault
from app.api.codec.media_types import JSON, MSGPACK
from app.api.problem import Problem, invalid

_PATH: Final = re.compile(r" - at `\$?\.?([^`]*)`$")
_KEY_PATH: Final = re.compile(r" - at `key` in `\$?\.?([^`]*)`$")
# msgspec's sentences about members of objects, about types and about ranges.
_MEMBER: Final = re.compile(r"object (missing required|contains unknown) field `([^`]*)", re.DOTALL)
_TYPES: Final = re.compile(r"^Expected `(\w+)`, got `(\w+)`$")
_RANGE: Final = re.compile(r"^Expected `\w+` (<=|>=|<|>) (\S+?)(\.0)?$")
_OUTSIDE: Final = {">=": "below", "<=": "above", ">": "not above", "<": "not below"}
_TYPE_NAMES: Final = {
    "int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "array": "an array",
    "object": "an object", "null": "null", "None": "null", "bytes": "a bin", "ext": "an extension type",
    "datetime": "a timestamp",
}  # fmt: skip
_QUOTE_SIZE_MAX: Final = 120  # characters
_NAME_LENGTH_MAX: Final = 40  # characters
# What decoding may raise, for `refuse_body`; msgspec checks the characters of a string only when it decodes the string.
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# What each member of an object must be, in words; a nested object has a mapping of its own.
Members: TypeAlias = "Mapping[str, str | Members]"
_COUNT_SIZES: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}  # bytes of the length in the head of long arrays and maps


def refuse_repeats(body: bytes, colons: int) -> None:
    """Raise the 422 for a JSON body in which a member of this API is repeated (RFC 7493 §2.3 forbids it).

    A reader that takes the first value and one that takes the last would act on different values: for example a gateway
    that checks moral values, and this server. `colons` is the number of colons that the body has if each member occurs
    once, those in payloads included; the values of the other members contain none.
    """
    if body.count(b":") != colons:
        raise _repeated(body, JSON, "")


def refuse_repeats_msgpack(body: bytes | memoryview | msgspec.Raw, members: int, item: str = "") -> None:
    """Raise the 422 of `refuse_repeats` for a msgpack map. `members` is the number of its members if each occurs once.

    The first bytes of a map have the number of its pairs. The caller has refused unknown keys before. `item`, such as
    `[3]`, is the item of a batch that was decoded.
    """
    if memoryview(body)[0] == 0x80 | members:  # PERF: nearly all maps have the short head: 0.2 µs instead of 0.5
        return
    if msgpack_count(body) != members:
        raise _repeated(bytes(body), MSGPACK, item)


def _repeated(body: bytes, media: str, item: str) -> Problem:
    if fault := find_fault(body, media, NAMES):
        return problem_of_fault(fault, body, media, item)
    # A name that is escaped once, and once is not.
    return invalid(item or "body", "field_repeated", "names a member more than once", "each member once")


def msgpack_count(packed: bytes | memoryview | msgspec.Raw) -> int:
    """Return the number of elements of a msgpack array, or of pairs of a map, from its head; 0 for any other value."""
    view = memoryview(packed)
    first = view[0] if view else 0
    if 0x80 <= first < 0xA0:
        return first & 0x0F
    return int.from_bytes(view[1 : 1 + _COUNT_SIZES.get(first, 0)])


def refuse_body(
    error: Exception, body: bytes, media: str, expected: Members, item: str = "", *, codes: Mapping[str, str] = {}
) -> NoReturn:
    """Raise the problem of a body that could not be decoded: 422 if a value does not fit its field, else mostly 400.

    `error` is one of DECODE_ERRORS, `media` the media type of the body. `expected` describes each member of an object;
    nested objects have a mapping of their own. For a body that is an array it describes the items; `item`, such as
    `[3]`, is the item that was decoded. `codes` has the codes of members whose refusals have one of their own.
    """
    if not isinstance(error, msgspec.ValidationError):
        if fault := find_fault(body, media):
            raise problem_of_fault(fault, body, media, item) from error
        raise invalid(item or "body", "field_invalid", f"cannot be decoded ({error})", f"valid {media}") from error
    reason, where = explain(error)
    if not where and media == MSGPACK and not item and body[:1] in {b"{", b"["}:
        raise invalid("body", "field_invalid", "is JSON, not msgpack", f"msgpack, or Content-Type {JSON}") from error
    where = (item + where).lstrip(".")
    node: str | Members = expected
    for step in where.split("."):
        name = step.partition("[")[0]
        if name and not isinstance(node, str):  # a step without a name is an item of an array
            node = node[name]
    if (member := _MEMBER.match(reason)) and not isinstance(node, str):
        name = member[2][:_NAME_LENGTH_MAX]
        field = f"{where}.{name}" if where else name
        if member[1] == "missing required":
            raise invalid(field, "field_missing", "is missing", _wanted(node[member[2]])) from error
        raise invalid(field, "field_unknown", "is unknown", "one of " + ", ".join(node)) from error
    wants_array = reason.endswith("not an array") and not isinstance(node, str)  # the body is not a list of items
    wanted = "an array" if wants_array else _wanted(node)
    raise invalid(where or "body", codes.get(where, "field_invalid"), reason, wanted) from error


def _wanted(node: "str | Members") -> str:
    return node if isinstance(node, str) else "an object"


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong (msgspec's sentence, reworded) and where: `[3]`, `.name`, or "" for the root."""
    text = str(error)
    key = _KEY_PATH.search(text)
    match = key or _PATH.search(text)
    path = match[1] if match else ""
    reason = _reworded(text[: match.start()] if match else text)
    if key:
        reason = "has a key that " + reason
    # The sentence may quote, at full length, what the client sent.
    return reason[:1].lower() + reason[1:_QUOTE_SIZE_MAX], path if path.startswith("[") or not path else "." + path


def _reworded(sentence: str) -> str:
    """Return a sentence of msgspec in words of JSON; those about members of objects stay as they are."""
    if types := _TYPES.match(sentence):
        wanted, found = types.groups()
        if (wanted, found) == ("int", "float"):
            return "has a fraction or an exponent"
        return f"is {_TYPE_NAMES.get(found, found)}, not {_TYPE_NAMES.get(wanted, wanted)}"
    if bounds := _RANGE.match(sentence):
        return f"is {_OUTSIDE[bounds[1]]} {bounds[2]}"
    if sentence.startswith("Invalid enum value "):
        return "is " + sentence.removeprefix("Invalid enum value ")
    return {
        "Number out of range": "is a number beyond float64", "Invalid base64 encoded string": "is not base64",
    }.get(sentence, sentence)  # fmt: skip
