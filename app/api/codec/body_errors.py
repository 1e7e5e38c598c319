"""Bodies that cannot be decoded, and why: msgspec's findings in the words of a problem document.

The rule for statuses: 400 when the bytes are not JSON or msgpack at all, 422 when they are and a value is wrong.
"""

import re
from collections.abc import Mapping
from typing import Final, NoReturn, TypeAlias

import msgspec

from app.api.problem import Problem, invalid, malformed

_PATH: Final = re.compile(r" - at `\$?\.?([^`]*)`$")
# What msgspec says about the members of an object, and about types.
_MEMBER: Final = re.compile(r"object (missing required|contains unknown) field `([^`]*)", re.DOTALL)
_TYPES: Final = re.compile(r"^Expected `(\w+)`, got `(\w+)`$")
_QUOTE_SIZE_MAX: Final = 120  # characters
# What decoding a body may raise, for `refuse_body`: msgspec checks the characters of a string only when it makes one.
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# What each member of an object must be, in words; of an object among them, what its members must be.
Members: TypeAlias = "Mapping[str, str | Members]"
_COUNT_SIZES: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}  # bytes behind the first: of long arrays, of long maps


def refuse_repeats(body: bytes, colons: int) -> None:
    """Raise the 422 for a JSON body in which an object names one of our members twice (RFC 7493 §2.3 forbids it).

    Who reads the first and who reads the last would act on different values: a gateway that checks moral values and
    this server, for example. `colons` is how many the body has when each member that was found stands there once; the
    values of ours have none.
    """
    if body.count(b":") != colons:
        raise _repeated()


def refuse_repeats_msgpack(body: bytes | memoryview | msgspec.Raw, members: int) -> None:
    """Raise the same 422 for a msgpack map. `members` is how many it has when each that was found stands there once.

    The head of a map says how many pairs follow, and a map with a key that is not ours has been refused.
    """
    if memoryview(body)[0] == 0x80 | members:  # PERF: the short head that nearly all maps have, 0.2 µs and not 0.5
        return
    if msgpack_count(body) != members:
        raise _repeated()


def _repeated() -> Problem:
    return invalid("body", "field_repeated", "names a member more than once", "each member once")


def msgpack_count(packed: bytes | memoryview | msgspec.Raw) -> int:
    """Return how many elements a msgpack array has, or pairs a map, as its head says; 0 when it is neither."""
    view = memoryview(packed)
    first = view[0] if view else 0
    if 0x80 <= first < 0xA0:
        return first & 0x0F
    return int.from_bytes(view[1 : 1 + _COUNT_SIZES.get(first, 0)])


def refuse_body(error: Exception, body: str, expected: Members, item: str = "") -> NoReturn:
    """Raise the problem with a body that could not be decoded: 422 when a value does not fit its field, else 400.

    `error` is one of DECODE_ERRORS. `expected` describes each member of an object; nested objects have a mapping of
    their own. For a body that is an array it describes the items; `item`, such as `[3]`, is the item that was decoded.
    """
    if isinstance(error, RecursionError):
        raise malformed("The body is nested too deeply.") from error
    if isinstance(error, UnicodeDecodeError):
        raise malformed(f"The body holds text that is not UTF-8: {error.reason}.") from error
    if not isinstance(error, msgspec.ValidationError):
        raise malformed(f"The body is not {body}: {error}.") from error
    reason, where = explain(error)
    where = (item + where).lstrip(".")
    node: str | Members = expected
    for step in where.split("."):
        name = step.partition("[")[0]
        if name and not isinstance(node, str):  # a step without a name is an item of the body
            node = node[name]
    if (member := _MEMBER.match(reason)) and not isinstance(node, str):
        field = f"{where}.{member[2]}" if where else member[2]
        if member[1] == "missing required":
            raise invalid(field, "field_missing", "is missing", _wanted(node[member[2]])) from error
        raise invalid(field, "field_unknown", "is unknown", "one of " + ", ".join(node)) from error
    wants_array = reason.endswith("not array") and not isinstance(node, str)  # the body itself: a batch
    raise invalid(where or "body", "field_invalid", reason, "an array" if wants_array else _wanted(node)) from error


def _wanted(node: "str | Members") -> str:
    return node if isinstance(node, str) else "an object"


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong and where, `[3]` or `.name`, "" at the root: msgspec's sentence in our words."""
    text = str(error)
    match = _PATH.search(text)
    path = match[1] if match else ""
    reason = _TYPES.sub(r"is \2, not \1", text[: match.start()] if match else text)
    # It may quote what the client sent, in full.
    return reason[:1].lower() + reason[1:_QUOTE_SIZE_MAX], path if path.startswith("[") or not path else "." + path
