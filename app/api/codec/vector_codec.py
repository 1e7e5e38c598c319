"""Vector codec: decodes JSON numbers, base64, msgpack and raw bytes into little-endian float32.

One function for each media type returns a buffer that the native core reads as it is. Each error is found once: types
and numbers by msgspec, lengths here, and NaN, infinities and norms by the native core, which reads each element anyway.
An element that overflows float32 is an infinity by then, and is refused as one.
"""

import binascii
import math
from array import array
from typing import Final, NoReturn, TypeAlias

import msgspec

from app.api.codec.body_errors import explain, msgpack_count
from app.api.codec.json_reader import JsonReader
from app.api.problem import Problem, invalid
from core.limits import VECTOR_NORM
from shm.errors import TOO_LONG

# The OpenAPI document refers to this type by name, because it depends on the dimension (`modules.openapi.schema`).
VECTOR_SCHEMA: Final = {"$ref": "#/components/schemas/Vector"}

_floats_of_json = msgspec.json.Decoder(list[float]).decode
_bytes_of_json = msgspec.json.Decoder(bytes).decode
_floats_of_msgpack = msgspec.msgpack.Decoder(list[float]).decode
_bytes_of_msgpack = msgspec.msgpack.Decoder(bytes).decode
_text_of_msgpack = msgspec.msgpack.Decoder(str).decode
_MSGPACK_ARRAYS: Final = frozenset(range(0x90, 0xA0)) | {0xDC, 0xDD}
_MSGPACK_STRINGS: Final = frozenset(range(0xA0, 0xC0)) | {0xD9, 0xDA, 0xDB}


FloatBuffer: TypeAlias = "bytes | bytearray | memoryview | array[float]"  # contiguous float32-LE
DoubleBuffer: TypeAlias = "memoryview[float] | array[float]"  # contiguous float64


class VectorCodec:
    """Decodes vectors of one dimension."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.size = 4 * dimension
        self.expected = f"{dimension} finite numbers, or the base64 of {dimension} little-endian float32"
        self._read = JsonReader(dimension).read_vector

    def of_json(self, raw: msgspec.Raw, field: str) -> FloatBuffer:
        """Return float32-LE[dimension] of a JSON array of numbers or a base64 string."""
        text = bytes(raw)
        if found := self._read(text):
            return found
        try:
            if text[0] == 0x5B:  # [, and n elements have n - 1 commas
                self._refuse_more(text.count(b",") + 1, field)
                return self._of_numbers(_floats_of_json(text), field)
            if text[0] == 0x22:  # "
                return self.of_bytes(_bytes_of_json(text), field)
        except msgspec.ValidationError as error:
            raise self._wrong(error, field) from error
        raise invalid(field, "vector_invalid", "is neither an array nor a string", self.expected)

    def of_msgpack(self, raw: msgspec.Raw, field: str) -> FloatBuffer:
        """Return float32-LE[dimension] of a msgpack array of numbers, a bin, or a base64 str."""
        packed = memoryview(raw)
        try:
            if packed[0] in _MSGPACK_ARRAYS:
                self._refuse_more(msgpack_count(packed), field)
                return self._of_numbers(_floats_of_msgpack(packed), field)
            if packed[0] in _MSGPACK_STRINGS:
                return self.of_bytes(self._of_base64(_text_of_msgpack(packed), field), field)
            return self.of_bytes(_bytes_of_msgpack(packed), field)
        except msgspec.ValidationError as error:
            raise self._wrong(error, field) from error

    def of_bytes(self, data: bytes | memoryview, field: str) -> bytes | memoryview:
        """Return the bytes as they are. Raises 422 unless there are dimension × 4 of them."""
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
        except ValueError as error:  # binascii.Error, or characters beyond ASCII
            raise invalid(field, "vector_invalid", "is not base64", self.expected) from error

    def _of_numbers(self, numbers: list[float], field: str) -> "array[float]":
        if len(numbers) != self.dimension:
            raise invalid(field, "dimension_mismatch", f"has {len(numbers)} elements", f"{self.dimension} elements")
        return array("f", numbers)

    def _refuse_more(self, count: int, field: str) -> None:
        """Refuse too many elements before they become objects, which take sixteen times the size of the body."""
        if count > self.dimension:
            raise invalid(field, "dimension_mismatch", f"has {count} elements", f"{self.dimension} elements")

    def _wrong(self, error: msgspec.ValidationError, field: str) -> Problem:
        reason, where = explain(error)
        return invalid(field + where, "vector_invalid", reason, self.expected)


def to_floats(vector: bytes) -> list[float]:
    """Return the numbers of float32-LE bytes; their decimal form in JSON is read back as the same float32."""
    return array("f", vector).tolist()


def refuse_vector(status: int, vector: FloatBuffer, field: str) -> NoReturn:
    """Raise the 422 for a vector that the native core refused with `status` (NOT_FINITE or TOO_LONG).

    `vector` is a buffer of float32-LE[dimension].
    """
    numbers = memoryview(vector).cast("B").cast("f")
    if status == TOO_LONG:
        norm = math.sqrt(math.fsum(number * number for number in numbers))
        raise invalid(field, VECTOR_NORM.code, f"has norm {norm:.9g}", f"a norm of at most {VECTOR_NORM.value}")
    index = next(i for i, number in enumerate(numbers) if not math.isfinite(number))
    detail = f"is {numbers[index]} as float32"
    raise invalid(f"{field}[{index}]", "not_finite", detail, "a finite number of magnitude at most 3.4028235e38")
