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
from app.api.codec.media_types import JSON, RAW, media_type
from app.api.codec.payload_codec import PayloadCodec
from app.api.codec.vector_codec import VECTOR_SCHEMA, FloatBuffer, VectorCodec
from app.api.problem import invalid

_DECIMAL: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UNIT: Final = "a number from 0 to 1"
MEMBERS: Final = {
    "event_vector": "an array of numbers, or base64 of little-endian float32",
    "moral_value": _UNIT,
    "payload": "any value",
}


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /event, and an item of POST /events.

    The payload is any value that JSON can express and every reader of JSON can read. It is returned as JSON.
    """

    event_vector: Annotated[msgspec.Raw, Meta(extra_json_schema=VECTOR_SCHEMA)]
    moral_value: Annotated[
        float,  # its range is checked here, not by msgspec, because the refusal has a code of its own
        Meta(
            description="How acceptable the event is. 1 is always accepted.",
            examples=[1.0],
            extra_json_schema={"minimum": 0, "maximum": 1},
        ),
    ]
    payload: Annotated[
        msgspec.Raw,
        Meta(
            description="Any JSON value; it is returned with the memory, in compact form.", examples=[{"text": "hello"}]
        ),
    ] = msgspec.field(default_factory=msgspec.Raw)


class EventReader:
    """Decodes events with vectors of one dimension and payloads of at most `payload_size_max` bytes."""

    def __init__(self, codec: VectorCodec, payload_size_max: int) -> None:
        self._codec = codec
        self._payloads = PayloadCodec(payload_size_max)
        self._native = JsonReader(codec.dimension, payload_size_max)
        self._of_json = msgspec.json.Decoder(Event).decode
        self._of_msgpack = msgspec.msgpack.Decoder(Event).decode

    def read(self, environ: WSGIEnvironment, body: bytes) -> tuple[float, FloatBuffer, bytes]:
        """Return moral value, float32-LE[dimension], payload (compact JSON, b"" for none). Raises Problem."""
        media = environ.get("CONTENT_TYPE")
        if media not in (RAW, JSON):
            media = media_type(environ)
        if media == RAW:
            return parse_moral_value(environ.get("HTTP_MORAL_VALUE")), self._codec.of_bytes(body, "body"), b""
        if media == JSON and (found := self._native.read_event(body)):
            check_moral_value(found[0], "moral_value")
            return found
        try:
            event = self._of_json(body) if media == JSON else self._of_msgpack(body)
            moral = check_moral_value(event.moral_value, "moral_value")
            vector = decode_vector(self._codec, event, media, "")
            payload = self._payloads.decode(event.payload, media, "payload")
        except DECODE_ERRORS as error:
            refuse_body(error, body, media, MEMBERS)
        if media == JSON:
            refuse_repeats(body, count_colons([event]))
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


def count_colons(events: list[Event]) -> int:
    """Return the number of colons in a JSON body with these events, if no member is repeated."""
    return sum([2 + bool(event.payload) + bytes(event.payload).count(b":") for event in events])
