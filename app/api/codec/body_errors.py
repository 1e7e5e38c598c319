"""Body errors: turn what msgspec finds wrong with a body into a problem.

Status 400 if the bytes are not JSON or msgpack at all, 422 if they are and a value is wrong.
"""

import re
from collections.abc import Mapping
from typing import Final, NoReturn, TypeAlias

import msgspec

from app.api.problem import Problem, invalid, malformed

_PATH: Final = re.compile(r" - at `\$?\.?([^`]*)`$")
# msgspec's sentences about members of objects, and about types.
_MEMBER: Final = re.compile(r"object (missing required|contains unknown) field `([^`]*)", re.DOTALL)
_TYPES: Final = re.compile(r"^Expected `(\w+)`, got `(\w+)`$")
_QUOTE_SIZE_MAX: Final = 120  # characters
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
        raise _repeated()


def refuse_repeats_msgpack(body: bytes | memoryview | msgspec.Raw, members: int) -> None:
    """Raise the 422 of `refuse_repeats` for a msgpack map. `members` is the number of its members if each occurs once.

    The first bytes of a map have the number of its pairs. The caller has refused unknown keys before.
    """
    if memoryview(body)[0] == 0x80 | members:  # PERF: nearly all maps have the short head: 0.2 µs instead of 0.5
        return
    if msgpack_count(body) != members:
        raise _repeated()


def _repeated() -> Problem:
    return invalid("body", "field_repeated", "names a member more than once", "each member once")


def msgpack_count(packed: bytes | memoryview | msgspec.Raw) -> int:
    """Return the number of elements of a msgpack array, or of pairs of a map, from its head; 0 for any other value."""
    view = memoryview(packed)
    first = view[0] if view else 0
    if 0x80 <= first < 0xA0:
        return first & 0x0F
    return int.from_bytes(view[1 : 1 + _COUNT_SIZES.get(first, 0)])


def refuse_body(error: Exception, media: str, expected: Members, item: str = "") -> NoReturn:
    """Raise the problem of a body that could not be decoded: 422 if a value does not fit its field, else 400.

    `error` is one of DECODE_ERRORS, `media` the media type of the body. `expected` describes each member of an object;
    nested objects have a mapping of their own. For a body that is an array it describes the items; `item`, such as
    `[3]`, is the item that was decoded.
    """
    if isinstance(error, RecursionError):
        raise malformed("The body is nested too deeply.") from error
    if isinstance(error, UnicodeDecodeError):
        raise malformed(f"The body holds text that is not UTF-8: {error.reason}.") from error
    if not isinstance(error, msgspec.ValidationError):
        raise malformed(f"The body is not {media}: {error}.") from error
    reason, where = explain(error)
    where = (item + where).lstrip(".")
    node: str | Members = expected
    for step in where.split("."):
        name = step.partition("[")[0]
        if name and not isinstance(node, str):  # a step without a name is an item of an array
            node = node[name]
    if (member := _MEMBER.match(reason)) and not isinstance(node, str):
        field = f"{where}.{member[2]}" if where else member[2]
        if member[1] == "missing required":
            raise invalid(field, "field_missing", "is missing", _wanted(node[member[2]])) from error
        raise invalid(field, "field_unknown", "is unknown", "one of " + ", ".join(node)) from error
    wants_array = reason.endswith("not array") and not isinstance(node, str)  # the body is not a list of items
    raise invalid(where or "body", "field_invalid", reason, "an array" if wants_array else _wanted(node)) from error


def _wanted(node: "str | Members") -> str:
    return node if isinstance(node, str) else "an object"


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong (msgspec's sentence, reworded) and where: `[3]`, `.name`, or "" for the root."""
    text = str(error)
    match = _PATH.search(text)
    path = match[1] if match else ""
    reason = _TYPES.sub(r"is \2, not \1", text[: match.start()] if match else text)
    # The sentence may quote, at full length, what the client sent.
    return reason[:1].lower() + reason[1:_QUOTE_SIZE_MAX], path if path.startswith("[") or not path else "." + path
