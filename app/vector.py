"""Bodies that carry vectors, decoded: JSON numbers, base64, msgpack and raw bytes all become little-endian float32.

One function for each media type; each returns buffers that the native core reads as they are. What is wrong with a
value is found once: by msgspec for types and numbers, here for lengths, and by the native core for NaN, infinities and
norms, because it must look at each element anyway. An element that overflows float32 is an infinity by then, which is
how it is caught.

The rule for statuses: 400 when the bytes are not JSON or msgpack at all, 422 when they are and a value is wrong.
"""

import binascii
import math
import re
from array import array
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeAlias

import msgspec

from app.problem import Problem, invalid, malformed
from core.limits import VECTOR_NORM
from shm.status import TOO_LONG

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
RAW: Final = "application/octet-stream"
# In the documents, where it stands for a type that depends on the dimension (`app.manual.schema`).
VECTOR_SCHEMA: Final = {"$ref": "#/components/schemas/Vector"}

_floats_of_json = msgspec.json.Decoder(list[float]).decode
_bytes_of_json = msgspec.json.Decoder(bytes).decode
_floats_of_msgpack = msgspec.msgpack.Decoder(list[float]).decode
_bytes_of_msgpack = msgspec.msgpack.Decoder(bytes).decode
_text_of_msgpack = msgspec.msgpack.Decoder(str).decode
_MSGPACK_ARRAYS: Final = frozenset(range(0x90, 0xA0)) | {0xDC, 0xDD}
_COUNT_SIZES: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}  # bytes behind the first: of long arrays, of long maps
_MSGPACK_STRINGS: Final = frozenset(range(0xA0, 0xC0)) | {0xD9, 0xDA, 0xDB}
_PATH: Final = re.compile(r" - at `\$?\.?([^`]*)`$")
# What msgspec says about the members of an object, and about types.
_MEMBER: Final = re.compile(r"object (missing required|contains unknown) field `([^`]*)", re.DOTALL)
_TYPES: Final = re.compile(r"^Expected `(\w+)`, got `(\w+)`$")
_QUOTE_SIZE_MAX: Final = 120  # characters

# What decoding a body may raise, for `refuse_body`: msgspec checks the characters of a string only when it makes one.
UNDECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# What each member of an object must be, in words; of an object among them, what its members must be.
Members: TypeAlias = "Mapping[str, str | Members]"
Floats: TypeAlias = "bytes | memoryview | array[float]"


class Codec:
    """Decodes vectors of one dimension."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.size = 4 * dimension
        self.expected = f"{dimension} finite numbers, or the base64 of {dimension} little-endian float32"

    def of_json(self, raw: msgspec.Raw, field: str) -> Floats:
        """Return float32-LE[dimension] of a JSON array of numbers or a base64 string."""
        text = memoryview(raw)
        try:
            if text[0] == 0x5B:  # [; a comma between two elements each
                self._refuse_more(bytes(text).count(b",") + 1, field)
                return self._of_numbers(_floats_of_json(text), field)
            if text[0] == 0x22:  # "
                return self.of_bytes(_bytes_of_json(text), field)
        except msgspec.ValidationError as error:
            raise self._wrong(error, field) from error
        raise invalid(field, "vector_invalid", "is neither an array nor a string", self.expected)

    def of_msgpack(self, raw: msgspec.Raw, field: str) -> Floats:
        """Return float32-LE[dimension] of a msgpack array of numbers, a bin, or a base64 str."""
        packed = memoryview(raw)
        try:
            if packed[0] in _MSGPACK_ARRAYS:
                self._refuse_more(count_of_packed(packed), field)
                return self._of_numbers(_floats_of_msgpack(packed), field)
            if packed[0] in _MSGPACK_STRINGS:
                return self.of_bytes(self._of_base64(_text_of_msgpack(packed), field), field)
            return self.of_bytes(_bytes_of_msgpack(packed), field)
        except msgspec.ValidationError as error:
            raise self._wrong(error, field) from error

    def of_bytes(self, data: bytes | memoryview, field: str) -> bytes | memoryview:
        """Return the bytes as they are when there are dimension × 4 of them."""
        if len(data) != self.size:
            raise invalid(
                field,
                "dimension_mismatch",
                f"has {len(data)} bytes",
                f"{self.size} bytes: {self.dimension} little-endian float32",
            )
        return data

    def _of_base64(self, text: str, field: str) -> bytes:
        try:
            return binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:  # binascii.Error is one; so is what it says of characters beyond ASCII
            raise invalid(field, "vector_invalid", "invalid base64 encoded string", self.expected) from error

    def _of_numbers(self, numbers: list[float], field: str) -> "array[float]":
        if len(numbers) != self.dimension:
            raise invalid(field, "dimension_mismatch", f"has {len(numbers)} elements", f"{self.dimension} elements")
        return array("f", numbers)

    def _refuse_more(self, count: int, field: str) -> None:
        """Refuse too many elements before they become objects, which take sixteen times the bytes of the body."""
        if count > self.dimension:
            raise invalid(field, "dimension_mismatch", f"has {count} elements", f"{self.dimension} elements")

    def _wrong(self, error: msgspec.ValidationError, field: str) -> Problem:
        reason, where = _told(error)
        return invalid(field + where, "vector_invalid", reason, self.expected)


def floats_of(vector: bytes) -> list[float]:
    """Return float32-LE bytes as numbers; their decimal form in JSON reads back as the same float32."""
    return array("f", vector).tolist()


def refuse_vector(status: int, vector: Any, field: str) -> NoReturn:
    """Raise the 422 for a vector that the native core would not admit.

    `vector` is float32-LE[dimension] as a buffer.
    """
    numbers = memoryview(vector).cast("B").cast("f")
    if status == TOO_LONG:
        norm = math.sqrt(math.fsum(number * number for number in numbers))
        raise invalid(field, VECTOR_NORM.code, f"has norm {norm:.9g}", f"a norm of at most {VECTOR_NORM.value}")
    index = next(i for i, number in enumerate(numbers) if not math.isfinite(number))
    detail = f"is {numbers[index]} as float32"
    raise invalid(f"{field}[{index}]", "not_finite", detail, "a finite number of magnitude at most 3.4028235e38")


def refuse_repeats(body: bytes, colons: int) -> None:
    """Raise the 422 for a JSON body in which an object names one of our members twice (RFC 7493 §2.3 forbids it).

    Who reads the first and who reads the last would act on different values: a gateway that checks moral values and
    this server, for example. `colons` is how many the body has when each member that was found stands there once; the
    values of ours have none.
    """
    if body.count(b":") != colons:
        raise _repeated()


def refuse_repeats_packed(body: bytes | memoryview | msgspec.Raw, members: int) -> None:
    """Raise the same 422 for a msgpack map. `members` is how many it has when each that was found stands there once.

    The head of a map says how many pairs follow, and a map with a key that is not ours has been refused.
    """
    if memoryview(body)[0] == 0x80 | members:  # PERF: the short head that nearly all maps have, 0.2 µs and not 0.5
        return
    if count_of_packed(body) != members:
        raise _repeated()


def _repeated() -> Problem:
    return invalid("body", "field_repeated", "names a member more than once", "each member once")


def count_of_packed(packed: bytes | memoryview | msgspec.Raw) -> int:
    """Return how many elements a msgpack array has, or pairs a map, as its head says; 0 when it is neither."""
    view = memoryview(packed)
    first = view[0] if view else 0
    if 0x80 <= first < 0xA0:
        return first & 0x0F
    return int.from_bytes(view[1 : 1 + _COUNT_SIZES.get(first, 0)])


def refuse_body(error: Exception, body: str, expected: Members, item: str = "") -> NoReturn:
    """Raise the problem with a body that could not be decoded: 422 when a value does not fit its field, else 400.

    `error` is one of UNDECODED; `expected` says what each member of an object must be, and of an object among them what
    its own members must be. A body that is an array holds such objects; `item`, such as `[3]`, says which of them was
    decoded by itself.
    """
    if isinstance(error, RecursionError):
        raise malformed("The body is nested too deeply.") from error
    if isinstance(error, UnicodeDecodeError):
        raise malformed(f"The body holds text that is not UTF-8: {error.reason}.") from error
    if not isinstance(error, msgspec.ValidationError):
        raise malformed(f"The body is not {body}: {error}.") from error
    reason, where = _told(error)
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


def _told(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong and where, `[3]` or `.name`, "" at the root: msgspec's sentence in our words."""
    text = str(error)
    match = _PATH.search(text)
    path = match[1] if match else ""
    reason = _TYPES.sub(r"is \2, not \1", text[: match.start()] if match else text)
    # It may quote what the client sent, in full.
    return reason[:1].lower() + reason[1:_QUOTE_SIZE_MAX], path if path.startswith("[") or not path else "." + path
