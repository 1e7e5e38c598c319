"""POST /event and POST /events: the path that this service exists for.

Decode, validate, one native call, encode. Nothing is admitted before everything about the request has been found right:
a batch is validated whole. A batch is then admitted one section per item, so others may interleave with it; if it is
stopped on the way (a lock that cannot be had, an operator's stop), the answer says which of its events were decided,
because those are. With an idempotency key, what was decided before is not decided again (app/idempotency.py).
"""

import re
from array import array
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

import falcon
import msgspec
from msgspec import Meta

from app.codes import EVENT
from app.context import Context
from app.decision import Decision, decision_of
from app.idempotency import IDEMPOTENCY_KEY
from app.operation import Octets, Operation, Parameter
from app.problem import Problem, invalid, of_store_error, over
from app.quota import give_back
from app.vector import (
    JSON,
    MSGPACK,
    RAW,
    UNDECODED,
    VECTOR_SCHEMA,
    Floats,
    count_of_packed,
    refuse_body,
    refuse_repeats,
    refuse_repeats_packed,
    refuse_vector,
)
from core.keys import Role
from core.limits import BATCH_COUNT
from shm import status

_DECIMAL: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UNIT: Final = "a number from 0 to 1"
REPLAYED: Final = ("Idempotency-Replayed", "true")
_PACKED_PER_JSON: Final = 9  # bytes of msgpack that may become one of JSON: a 0 as 64-bit integer
MEMBERS: Final = {
    "event_vector": "an array of numbers, or base64 of little-endian float32",
    "moral_value": _UNIT,
    "payload": "any value",
}

encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /event, and an item of POST /events.

    The payload is any JSON or msgpack value, given back as JSON.
    """

    event_vector: Annotated[msgspec.Raw, Meta(extra_json_schema=VECTOR_SCHEMA)]
    moral_value: Annotated[
        float,  # its range is checked here and not by msgspec, because its refusal has a code of its own
        Meta(
            description="How acceptable the event is.", examples=[0.8], extra_json_schema={"minimum": 0, "maximum": 1}
        ),
    ]
    payload: Annotated[
        msgspec.Raw, Meta(description="Any value, to be given back with the memory.", examples=[{"text": "hello"}])
    ] = msgspec.field(default_factory=msgspec.Raw)


_Events = Annotated[list[Event], Meta(min_length=1, max_length=BATCH_COUNT.value)]


class Batch(msgspec.Struct):
    """The answer to POST /events: one decision per event, in order."""

    results: list[Decision]
    accepted: Annotated[int, Meta(description="How many of them were accepted.", ge=0, examples=[1])]
    rejected: Annotated[int, Meta(description="How many were not.", ge=0, examples=[0])]


MORAL_VALUE: Final = Parameter(
    "Moral-Value",
    "header",
    Annotated[float, Meta(ge=0, le=1, examples=[0.8])],
    f"The moral value of an event in `{RAW}`, which must have it; ignored with any other body.",
)


class EventResource:
    """One event per request."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "POST": Operation(
            "Decide one event.", Role.WRITE, Decision,
            body={JSON: Event, MSGPACK: Event, RAW: Octets("The vector, little-endian float32, and nothing else.")},
            parameters=(MORAL_VALUE, IDEMPOTENCY_KEY), refusals=EVENT, cost=1,
        )
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context
        self.codec = context.codec
        self.of_json = msgspec.json.Decoder(Event).decode
        self.of_msgpack = msgspec.msgpack.Decoder(Event).decode

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Decide one event."""
        context = self.context
        body = request.env["wsgi.input"].read()
        moral, vector, payload = self._read(request, body)
        key = context.idempotency.key_of(request, body)
        try:
            decided = context.store.admit(context.clock(), moral, vector, payload, key)
        except status.NotFinite:
            refuse_vector(status.NOT_FINITE, vector, "event_vector")
        except status.TooLong:
            refuse_vector(status.TOO_LONG, vector, "event_vector")
        if decided.repeated:
            response.set_header(*REPLAYED)
        response.data = encode(decision_of(decided, context.boot_id))
        response.content_type = JSON
        context.count_latency(request.env)

    def _read(self, request: falcon.Request, body: bytes) -> tuple[float, Floats, bytes]:
        """Return moral value, float32-LE[dimension] and payload of a request, or raise the Problem with it."""
        media = media_type(request)
        if media == RAW:
            moral = moral_header(request)
            return moral, self.codec.of_bytes(body, "body"), b""
        try:
            event = self.of_json(body) if media == JSON else self.of_msgpack(body)
            moral = moral_value(event.moral_value, "moral_value")
            vector = vector_of(self.codec, event, media, "")
            payload = payload_of(event, media, self.context.payload_size_max, "")
        except UNDECODED as error:
            refuse_body(error, media, MEMBERS)
        if media == JSON:
            refuse_repeats(body, colons_of([event], [payload]))
        else:
            refuse_repeats_packed(body, 2 + bool(event.payload))
        return moral, vector, payload


class BatchResource:
    """Many events per request."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "POST": Operation(
            "Decide a batch of events, in order; validated whole before the first is decided.", Role.WRITE, Batch,
            body={
                JSON: _Events, MSGPACK: _Events,
                RAW: Octets("n moral values, float64, then n vectors, float32; little-endian.", 8, BATCH_COUNT.value),
            },
            parameters=(IDEMPOTENCY_KEY,),
            refusals=(*EVENT, "batch_empty", BATCH_COUNT.code, "batch_above_burst", "batch_interrupted"),
        )
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context
        self.codec = context.codec
        self.of_json = msgspec.json.Decoder(list[Event]).decode
        self.of_msgpack = msgspec.msgpack.Decoder(Event).decode
        self.items_of_msgpack = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Decide a batch of events, in order."""
        context = self.context
        body = request.env["wsgi.input"].read()
        morals, vectors, payloads = self._read(request, body)
        key = context.idempotency.key_of(request, body)
        code, bad = context.store.check_vectors(vectors, len(morals))
        if code != status.OK:
            size = self.codec.size
            refuse_vector(code, memoryview(vectors)[bad * size : (bad + 1) * size], f"[{bad}].event_vector")
        context.charge(request, response, len(morals))
        decisions, code = context.store.admit_batch(context.clock(), morals, vectors, payloads, key)
        results = [decision_of(decided, context.boot_id) for decided in decisions]
        if code != status.OK:
            give_back(request.env, spent=len(results))
            raise self._interrupted(code, results, len(morals))
        if any(decided.repeated for decided in decisions):
            response.set_header(*REPLAYED)
        accepted = sum(result.accepted for result in results)
        response.data = encode(Batch(results, accepted, len(results) - accepted))
        response.content_type = JSON
        context.count_latency(request.env)

    @staticmethod
    def _interrupted(code: int, results: list[Decision], count: int) -> Problem:
        """Return the answer to a batch that was stopped on its way; raise what stopped it when nothing was decided."""
        try:
            status.fail(code)
        except status.StoreError as error:
            if not results:
                raise
            reason = of_store_error(error).problem_code
        # No Retry-After: without an idempotency key, who sent it all again would have its first events decided twice.
        detail = f"The first {len(results)} of {count} events were decided, the rest were not ({reason})."
        return Problem(503, "batch_interrupted", detail, results=results)

    def _read(self, request: falcon.Request, body: bytes) -> tuple[Any, Any, list[bytes] | None]:
        """Return float64[n], float32[n × dimension] and the payloads of a request, or raise the Problem with it."""
        media = media_type(request)
        if media == RAW:
            return self._read_raw(body)
        try:
            events = self.of_json(body) if media == JSON else self._of_msgpack(body)
            check_count(len(events))
            size_max = self.context.payload_size_max
            morals = [moral_value(event.moral_value, f"[{i}].moral_value") for i, event in enumerate(events)]
            vectors = b"".join([vector_of(self.codec, event, media, f"[{i}].") for i, event in enumerate(events)])
            payloads = [payload_of(event, media, size_max, f"[{i}].") for i, event in enumerate(events)]
        except UNDECODED as error:
            refuse_body(error, media, MEMBERS)
        if media == JSON:
            refuse_repeats(body, colons_of(events, payloads))
        return array("d", morals), vectors, payloads

    def _of_msgpack(self, body: bytes) -> list[Event]:
        """Return the events of a msgpack body, each of whose maps names no member twice. Raises one of UNDECODED.

        One by one, because only the head of each map tells that; JSON has colons to count.
        """
        if count_of_packed(body) > BATCH_COUNT.value:  # before each of them becomes an object
            raise over(BATCH_COUNT, "body", count_of_packed(body))
        events = []
        for i, packed in enumerate(self.items_of_msgpack(body)):
            try:
                event = self.of_msgpack(packed)
            except UNDECODED as error:
                refuse_body(error, MSGPACK, MEMBERS, f"[{i}]")
            refuse_repeats_packed(packed, 2 + bool(event.payload))
            events.append(event)
        return events

    def _read_raw(self, body: bytes) -> tuple[Any, Any, None]:
        count, rest = divmod(len(body), 8 + self.codec.size)
        if rest:
            raise invalid(
                "body",
                "dimension_mismatch",
                f"has {len(body)} bytes",
                f"n × {8 + self.codec.size}: n float64 moral values, then n × {self.codec.dimension} float32",
            )
        check_count(count)
        view = memoryview(body)
        morals = view[: 8 * count].cast("d")
        for i, moral in enumerate(morals):
            moral_value(moral, f"[{i}].moral_value")
        return morals, view[8 * count :], None


def media_type(request: falcon.Request) -> str:
    """Return the media type of the body without its parameters, one of the three that carry vectors."""
    media = request.env.get("CONTENT_TYPE", JSON)
    if media in (JSON, MSGPACK, RAW):
        return str(media)
    bare = media.partition(";")[0].strip().lower()
    if bare not in (JSON, MSGPACK, RAW):
        raise Problem(
            415, "unsupported_media_type", f"Content-Type is {bare[:40]!r}; expected {JSON}, {MSGPACK} or {RAW}",
            field="Content-Type", expected=f"{JSON}, {MSGPACK} or {RAW}",
        )  # fmt: skip
    return str(bare)


def moral_value(value: float, field: str) -> float:
    """Return a moral value that lies within [0, 1]; NaN does not."""
    if not 0.0 <= value <= 1.0:
        raise invalid(field, "moral_value_out_of_range", f"is {value}", _UNIT)
    return value


def moral_header(request: falcon.Request) -> float:
    """Return the moral value of a raw event, from its header."""
    text = request.env.get("HTTP_MORAL_VALUE")
    if text is None:
        raise invalid("Moral-Value", "field_missing", "the header is missing", _UNIT)
    if not _DECIMAL.fullmatch(text):
        raise invalid("Moral-Value", "field_invalid", f"is {text[:40]!r}", f"{_UNIT} in decimal notation")
    return moral_value(float(text), "Moral-Value")


def vector_of(codec: Any, event: Event, media: str, prefix: str) -> Floats:
    """Return the vector of a decoded event as float32-LE[dimension]."""
    field = prefix + "event_vector"
    decoded: Floats = (
        codec.of_json(event.event_vector, field) if media == JSON else codec.of_msgpack(event.event_vector, field)
    )
    return decoded


def payload_of(event: Event, media: str, size_max: int, prefix: str) -> bytes:
    """Return the payload of a decoded event as JSON text in UTF-8, b"" when it has none."""
    if not event.payload:
        return b""
    if media == JSON:
        payload = bytes(event.payload)
    else:
        packed = memoryview(event.payload)
        if len(packed) > _PACKED_PER_JSON * (size_max + 4):  # decoded, it could take eighty times its size; 4: null
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
    """Raise the 422 for a number that a strict reader cannot read back (1e999), one of UNDECODED for bytes that are no
    UTF-8; msgspec has checked the rest of the grammar, but looks at numbers and characters only when it makes them.

    A payload is given back as it came, in the midst of an answer: who cannot read it cannot read the memories beside it
    either (RFC 7493 §2.2; RFC 8259 §6 leaves it open).
    """
    try:
        msgspec.json.decode(payload)
    except msgspec.ValidationError as error:
        raise invalid(field, "payload_invalid", "has a number beyond float64", "numbers up to 1.8e308") from error


def _too_large(prefix: str, found: str, size_max: int) -> Problem:
    expected = f"at most {size_max} bytes as JSON"
    return Problem(413, "payload_too_large", f"{prefix}payload: {found}; expected {expected}",
                   field=prefix + "payload", expected=expected)  # fmt: skip


def colons_of(events: list[Event], payloads: list[bytes]) -> int:
    """Return how many colons a JSON body with these events has."""
    return sum([2 + bool(event.payload) for event in events]) + sum([payload.count(b":") for payload in payloads])


def _json_of(packed: msgspec.Raw, field: str) -> bytes:
    """Return a msgpack value as JSON: bin becomes base64, a timestamp RFC 3339, NaN null; of keys that stand in a map
    twice, the last one stays.
    """
    try:
        return encode(msgspec.msgpack.decode(packed))
    except (TypeError, msgspec.ValidationError) as error:  # other extensions, keys that are not text, impossible times
        raise invalid(field, "payload_invalid", "has no JSON form", "a value that can be written as JSON") from error


def check_count(count: int) -> None:
    """Raise the Problem with an empty or too long batch."""
    if count == 0:
        raise invalid("body", "batch_empty", "holds no event", f"1 to {BATCH_COUNT.value} events")
    if count > BATCH_COUNT.value:
        raise over(BATCH_COUNT, "body", count)
