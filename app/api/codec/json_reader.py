"""JSON reader: decodes the usual forms of an event in one pass of native code (app/api/codec/native/json_reader.c).

Invariants: it knows just enough JSON for an event. Whatever it accepts, msgspec would decode to the same numbers, bit
for bit, and the payload codec to the same payload; everything else, valid or not, is left to these.

Perf: 5 µs for an event of 384 numbers in 4 kB, 1.5 µs in base64. With msgspec, a list of floats and an array it was 21
and 4 µs.
"""

from app.api.codec._native import ffi, lib
from core.limits import PAYLOAD_DEPTH


class JsonReader:
    """Reads events with vectors of one dimension and payloads of at most `payload_size_max` bytes."""

    def __init__(self, dimension: int, payload_size_max: int = 0) -> None:
        self._dimension = dimension
        self._payload_size_max = payload_size_max
        self._event = ffi.new("struct mlsdm_event *")
        self._floats = ffi.new("float[]", dimension)
        self._vector = ffi.buffer(self._floats)
        self._octets = ffi.new("uint8_t[]", max(1, payload_size_max))
        self._payload = ffi.buffer(self._octets)

    def read_event(self, body: bytes) -> tuple[float, bytes, bytes] | None:
        """Return moral value (any number), float32-LE[dimension] and the payload as compact JSON (b"" for none).

        None if the body is not an event, or one that is left to others. Not thread-safe: the buffers are reused.
        """
        event = self._event
        assert type(body) is bytes  # Python ends it with a NUL, which the native reader needs
        if not lib.mlsdm_read_event(
            body, len(body), self._dimension, self._floats, self._octets, self._payload_size_max, PAYLOAD_DEPTH.value,
            event,
        ):  # fmt: skip
            return None
        size = event.payload_size
        if not size:
            return event.moral, self._vector[:], b""
        payload = self._payload[:size]
        return event.moral, self._vector[:], payload if payload != b"null" else b""

    def read_vector(self, text: bytes) -> bytes | None:
        """Return float32-LE[dimension] of an array of numbers or a base64 string; None for anything else."""
        floats = ffi.new("float[]", self._dimension)
        assert type(text) is bytes
        return bytes(ffi.buffer(floats)) if lib.mlsdm_read_vector(text, len(text), self._dimension, floats) else None
