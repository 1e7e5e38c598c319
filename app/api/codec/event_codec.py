"""Event codec: decodes the body of an event into a moral value, a vector and a payload.

The usual forms of JSON are decoded in one pass of native code (`app.api.codec.json_reader`). msgspec decodes every
other body, and explains what is wrong with an invalid one.
"""

import re
from functools import lru_cache
from typing import Annotated, Final
from wsgiref.types import WSGIEnvironment

import msgspec
from msgspec import Meta

from app.api.codec.body_errors import DECODE_ERRORS, refuse_body, refuse_repeats, refuse_repeats_msgpack
from app.api.codec.json_reader import JsonReader
from app.api.codec.media_types import JSON, RAW, encode, media_type
from app.api.codec.vector_codec import VECTOR_SCHEMA, FloatBuffer, VectorCodec
from app.api.problem import Problem, invalid

_DECIMAL: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UNIT: Final = "a number from 0 to 1"
_PACKED_PER_JSON: Final = 9  # bytes of msgpack for one of JSON at most: a 0 as 64-bit integer
MEMBERS: Final = {
    "event_vector": "an array of numbers, or base64 of little-endian float32",
    "moral_value": _UNIT,
    "payload": "any value",
}


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /event, and an item of POST /events.

    The payload is any JSON or msgpack value, and is returned as JSON.
    """

    event_vector: Annotated[msgspec.Raw, Meta(extra_json_schema=VECTOR_SCHEMA)]
    moral_value: Annotated[
        float,  # its range is checked here, not by msgspec, because the refusal has a code of its own
        Meta(
            description="How acceptable the event is.",
            examples=[0.8],
            extra_json_schema={"minimum": 0, "maximum": 1},
        ),
    ]
    payload: Annotated[
        msgspec.Raw, Meta(description="Any value; it is returned with the memory.", examples=[{"text": "hello"}])
    ] = msgspec.field(default_factory=msgspec.Raw)


class EventReader:
    """Decodes events with vectors of one dimension and payloads of at most `payload_size_max` bytes of JSON."""

    def __init__(self, codec: VectorCodec, payload_size_max: int) -> None:
        self._codec = codec
        self._payload_size_max = payload_size_max
        self._native = JsonReader(codec.dimension, payload_size_max)
        self._of_json = msgspec.json.Decoder(Event).decode
        self._of_msgpack = msgspec.msgpack.Decoder(Event).decode

    def read(self, environ: WSGIEnvironment, body: bytes) -> tuple[float, FloatBuffer, bytes]:
        """Return moral value, float32-LE[dimension] and payload (JSON, b"" for none) of a request. Raises Problem."""
        media = environ.get("CONTENT_TYPE")
        if media not in (RAW, JSON):
            media = media_type(environ)
        if media == RAW:
            return parse_moral_value(environ.get("HTTP_MORAL_VALUE")), self._codec.of_bytes(body, "body"), b""
        if media == JSON and (found := self._native.event(body)):
            check_moral_value(found[0], "moral_value")
            return found
        try:
            event = self._of_json(body) if media == JSON else self._of_msgpack(body)
            moral = check_moral_value(event.moral_value, "moral_value")
            vector = decode_vector(self._codec, event, media, "")
            payload = decode_payload(event, media, self._payload_size_max, "")
        except DECODE_ERRORS as error:
            refuse_body(error, media, MEMBERS)
        if media == JSON:
            refuse_repeats(body, count_colons([event], [payload]))
        else:
            refuse_repeats_msgpack(body, 2 + bool(event.payload))
        return moral, vector, payload


def check_moral_value(value: float, field: str) -> float:
    """Return a moral value from 0 to 1. Raises 422 for any other, NaN included."""
    if not 0.0 <= value <= 1.0:
        raise invalid(field, "moral_value_out_of_range", f"is {value}", _UNIT)
    return value


@lru_cache(maxsize=1024)  # PERF: values of three digits are at most a thousand: 0.1 µs instead of 0.5
def parse_moral_value(text: str | None) -> float:
    """Return the moral value in the header of a raw event. Raises 422."""
    if text is None:
        raise invalid("Moral-Value", "field_missing", "the header is missing", _UNIT)
    if not _DECIMAL.fullmatch(text):
        raise invalid("Moral-Value", "field_invalid", f"is {text[:40]!r}", f"{_UNIT} in decimal notation")
    return check_moral_value(float(text), "Moral-Value")


def decode_vector(codec: VectorCodec, event: Event, media: str, prefix: str) -> FloatBuffer:
    """Return the vector of a decoded event as float32-LE[dimension]."""
    field = prefix + "event_vector"
    return codec.of_json(event.event_vector, field) if media == JSON else codec.of_msgpack(event.event_vector, field)


def decode_payload(event: Event, media: str, size_max: int, prefix: str) -> bytes:
    """Return the payload of a decoded event as JSON in UTF-8, b"" if it has none. Raises Problem."""
    if not event.payload:
        return b""
    if media == JSON:
        payload = bytes(event.payload)
    else:
        packed = memoryview(event.payload)
        if len(packed) > _PACKED_PER_JSON * (size_max + 4):  # decoded, it could take eighty times its size; 4: `null`
            raise _too_large(prefix, f"{len(packed)} bytes of msgpack", size_max)
        payload = _json_of(event.payload, prefix + "payload")
    if payload == b"null":
        return b""
    if len(payload) > size_max:
        raise _too_large(prefix, f"{len(payload)} bytes as JSON", size_max)
    if media == JSON:
        _check(payload, prefix + "payload")
    return payload


def _check(payload: bytes, field: str) -> None:
    """Raise the 422 for a number that a strict reader cannot read back (1e999), and one of DECODE_ERRORS for bytes
    that are not UTF-8.

    msgspec has checked the rest of the grammar already; it checks numbers and characters only when it decodes them.
    A payload is returned as it came, inside an answer: a reader that cannot parse it cannot parse the memories beside
    it either (RFC 7493 §2.2; RFC 8259 §6 leaves it open).
    """
    try:
        msgspec.json.decode(payload)
    except msgspec.ValidationError as error:
        raise invalid(field, "payload_invalid", "has a number beyond float64", "numbers up to 1.8e308") from error


def _too_large(prefix: str, found: str, size_max: int) -> Problem:
    expected = f"at most {size_max} bytes as JSON"
    return Problem(413, "payload_too_large", f"{prefix}payload: {found}; expected {expected}",
                   field=prefix + "payload", expected=expected)  # fmt: skip


def count_colons(events: list[Event], payloads: list[bytes]) -> int:
    """Return the number of colons in a JSON body with these events, if no member is repeated."""
    return sum([2 + bool(event.payload) for event in events]) + sum([payload.count(b":") for payload in payloads])


def _json_of(packed: msgspec.Raw, field: str) -> bytes:
    """Return a msgpack value as JSON.

    A bin becomes base64, a timestamp RFC 3339, NaN null; of repeated keys in a map the last one stays.
    """
    try:
        return encode(msgspec.msgpack.decode(packed))
    except (TypeError, msgspec.ValidationError) as error:  # extensions, keys that are not text, invalid times
        raise invalid(field, "payload_invalid", "has no JSON form", "a value that can be written as JSON") from error
