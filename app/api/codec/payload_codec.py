"""Payload codec: decodes payloads into the form in which they are stored and given out, compact JSON in UTF-8.

Invariants: every reader of JSON can read back every payload, because one that it cannot read makes the memories beside
it in a recall unreadable too. So numbers are finite as float64, whole numbers fit 64 bits, strings are UTF-8 without
half surrogate pairs, names are unique, and nesting is bounded (RFC 7493 with 64 bits for whole numbers; RFC 8259 §9).
What has no JSON form is refused, not converted: a client would get back something else than it sent.

The compact form has no white space between tokens and no escape but the necessary ones; numbers keep their digits. The
size is measured in this form, so it does not depend on how the payload was spelled.

Threading: one thread; the buffers are reused.
"""

from typing import Final

import msgspec

from app.api.codec._native import ffi, lib
from app.api.codec.faults import NAMES, STRICT, fault_of, problem_of_fault
from app.api.codec.media_types import JSON, MSGPACK, encode
from app.api.problem import Problem
from core.limits import PAYLOAD_DEPTH

_PACKED_PER_JSON: Final = 9  # bytes of msgpack for one of JSON at most: a 0 as 64-bit integer


class PayloadCodec:
    """Decodes payloads of at most `size_max` bytes in the compact form."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._buffer = ffi.new("uint8_t[]", max(1, size_max))
        self._bytes = ffi.buffer(self._buffer)
        self._walk = ffi.new("struct mlsdm_walk *")

    def decode(self, raw: msgspec.Raw, media: str, field: str) -> bytes:
        """Return a payload in the compact form, b"" for null and for none. Raises Problem: 400, 413 or 422."""
        if not raw:
            return b""
        payload = self._of_json(bytes(raw), field) if media == JSON else self._of_msgpack(bytes(raw), field)
        return payload if payload != b"null" else b""

    def _of_json(self, text: bytes, field: str) -> bytes:
        walk, flags, depth_max = self._walk, NAMES | STRICT, PAYLOAD_DEPTH.value
        if lib.mlsdm_walk_json(text, len(text), flags, depth_max, self._buffer, self._size_max, walk):
            return self._bytes[: walk.written]
        if walk.kind == lib.MLSDM_FAULT_TOO_LARGE:
            whole = ffi.new("uint8_t[]", len(text))  # the compact form is never longer
            if lib.mlsdm_walk_json(text, len(text), flags, depth_max, whole, len(text), walk):
                return self._fitting(bytes(ffi.buffer(whole, walk.written)), field)
        raise problem_of_fault(fault_of(walk, text, JSON), text, JSON, field)

    def _of_msgpack(self, packed: bytes, field: str) -> bytes:
        if len(packed) > _PACKED_PER_JSON * (self._size_max + 4):  # decoded, it could take eighty times its size
            raise self._too_large(field, f"{len(packed)} bytes of msgpack")
        walk = self._walk
        if not lib.mlsdm_walk_msgpack(packed, len(packed), NAMES | STRICT, PAYLOAD_DEPTH.value, walk):
            raise problem_of_fault(fault_of(walk, packed, MSGPACK), packed, MSGPACK, field)
        return self._fitting(encode(msgspec.msgpack.decode(packed)), field)

    def _fitting(self, payload: bytes, field: str) -> bytes:
        if len(payload) > self._size_max and payload != b"null":
            raise self._too_large(field, f"{len(payload)} bytes as compact JSON")
        return payload

    def _too_large(self, field: str, found: str) -> Problem:
        expected = f"at most {self._size_max} bytes as compact JSON in UTF-8"
        return Problem(413, "payload_too_large", f"{field}: {found}; expected {expected}",
                       field=field, expected=expected)  # fmt: skip
