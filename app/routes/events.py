"""POST /event and POST /events: decode, validate, one native call, encode.

Invariants: nothing is admitted before the whole request is found valid; a batch is validated as a whole. A batch enters
the critical section once for each event, so events of other clients may come between its events. The answer to a batch
that is stopped midway (the lock cannot be acquired, an operator stops admissions) lists the decisions that were made.
With an idempotency key, no event is decided twice (app/api/access/idempotency_keys.py).
"""

from array import array
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple, NoReturn
from wsgiref.types import WSGIEnvironment

import falcon
import msgspec
from msgspec import Meta

from app.api.access.client import client_of
from app.api.access.idempotency_keys import IDEMPOTENCY_KEY, KEY_MEMBER
from app.api.access.quotas import refund
from app.api.codec.body_errors import DECODE_ERRORS, msgpack_count, refuse_body, refuse_repeats, refuse_repeats_msgpack
from app.api.codec.body_sizes import event_size_max, refuse_above
from app.api.codec.event_codec import (
    MEMBERS,
    Event,
    EventReader,
    check_moral_value,
    count_colons,
    decode_vector,
)
from app.api.codec.media_types import JSON, MSGPACK, RAW, media_type
from app.api.codec.payload_codec import PayloadCodec
from app.api.codec.vector_codec import DoubleBuffer, FloatBuffer, refuse_vector
from app.api.context import Context
from app.api.decision_view import DecisionView, to_decision_view
from app.api.decision_writer import DecisionWriter
from app.api.fields import component
from app.api.operation import Octets, Operation, Parameter
from app.api.problem import Problem, above_limit, invalid, problem_of_store_error
from app.api.problem_codes import EVENT
from app.httpd.request import HEADER_LINES
from core.access.keys import Role
from core.limits import BATCH_COUNT, BODY_SIZE
from shm import errors
from shm.records import NO_IDEMPOTENCY_HASH, IdempotencyHash
from shm.store import Decision, DecisionFields

_MEMORY_ID: Final = Decision._fields.index("memory_id")
_REPEATED: Final = Decision._fields.index("repeated")
REPLAYED: Final = "Idempotency-Replayed: true\r\n"  # a whole header line
_Events = Annotated[list[Event], Meta(min_length=1, max_length=BATCH_COUNT.value)]


class Batch(NamedTuple):
    """The decoded events of a batch of n."""

    morals: DoubleBuffer  # float64[n], each from 0 to 1
    vectors: FloatBuffer  # float32-LE[n, dimension], row after row; norms and finiteness are not checked yet
    payloads: list[bytes] | None  # n payloads as JSON in UTF-8, b"" for none; None when no event has one


@component("Batch")
class BatchView(msgspec.Struct):
    """The response to POST /events: one decision per event, in order."""

    results: list[DecisionView]
    accepted: Annotated[int, Meta(description="Number of accepted events.", ge=0, examples=[1])]
    rejected: Annotated[int, Meta(description="Number of rejected events.", ge=0, examples=[0])]


MORAL_VALUE: Final = Parameter(
    "Moral-Value",
    "header",
    Annotated[float, Meta(ge=0, le=1, examples=[1.0])],
    f"Moral value of the event; 1 is always accepted. Required with a body in `{RAW}`, ignored with any other.",
)


class EventResource:
    """POST /event: one event per request."""

    def __init__(self, context: Context) -> None:
        self.size_max = event_size_max(context.config.dimension, context.payload_size_max)
        self.operations: Mapping[str, Operation] = {
            "POST": Operation(
                "Decide one event.", Role.WRITE, DecisionView,
                body={
                    JSON: Event, MSGPACK: Event,
                    RAW: Octets("The vector as little-endian float32, without anything else."),
                },
                parameters=(MORAL_VALUE, IDEMPOTENCY_KEY), refusals=EVENT, cost=1, body_size_max=self.size_max,
            )
        }  # fmt: skip
        self.context = context
        self.read = EventReader(context.codec, context.payload_size_max).read
        self.write = DecisionWriter(context.boot_id, context.log_id).write
        self.fast_responders = {"POST": self.decide}

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Decide one event."""
        response.content_type = JSON
        response.data = self.decide(request.env)

    def decide(self, environ: WSGIEnvironment) -> bytes:
        """Decide one event; return the decision as JSON. Raises Problem or StoreError."""
        context = self.context
        body = environ["wsgi.input"].read()
        refuse_above(len(body), self.size_max)
        moral, vector, payload = self.read(environ, body)
        key: IdempotencyHash = NO_IDEMPOTENCY_HASH
        if KEY_MEMBER in environ:
            key = context.idempotency.hash_of(environ, array("d", (moral,)), vector, [payload])
        try:
            decided = context.store.admit(context.log_time(), moral, vector, payload, key)
        except errors.NotFinite:
            refuse_vector(errors.NOT_FINITE, vector, "event_vector")
        except errors.TooLong:
            refuse_vector(errors.TOO_LONG, vector, "event_vector")
        if not decided.memory_id and not decided.repeated:
            context.count_rejected(client_of(environ).tier, 1)
        if decided.repeated:
            environ[HEADER_LINES] = environ.get(HEADER_LINES, "") + REPLAYED
        return self.write(decided)


class BatchResource:
    """POST /events: a batch of events per request."""

    def __init__(self, context: Context) -> None:
        self.event_size_max = event_size_max(context.config.dimension, context.payload_size_max)
        self.operations: Mapping[str, Operation] = {
            "POST": Operation(
                "Decide a batch of events in order. The whole batch is validated before the first event is decided.",
                Role.WRITE, BatchView,
                body={
                    JSON: _Events, MSGPACK: _Events,
                    RAW: Octets(
                        "n moral values as float64, then n vectors as float32; little-endian.", 8, BATCH_COUNT.value
                    ),
                },
                parameters=(IDEMPOTENCY_KEY,),
                refusals=(*EVENT, "batch_empty", BATCH_COUNT.code, "batch_above_burst", "batch_interrupted"),
                body_size_max=min(BODY_SIZE.value, BATCH_COUNT.value * self.event_size_max),
                item_size_max=self.event_size_max, in_turn=True,
            )
        }  # fmt: skip
        self.context = context
        self.codec = context.codec
        self._payloads = PayloadCodec(context.payload_size_max)
        self._write = DecisionWriter(context.boot_id, context.log_id).write
        self._decode_json = msgspec.json.Decoder(list[Event]).decode
        self._decode_packed_event = msgspec.msgpack.Decoder(Event).decode
        self._split_packed_events = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
        self.fast_responders = {"POST": self.decide}

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Decide a batch of events, in order."""
        response.content_type = JSON
        response.data = self.decide(request.env)

    def decide(self, environ: WSGIEnvironment) -> bytes:
        """Decide a batch of events in order; return the decisions as JSON. Raises Problem or StoreError."""
        context = self.context
        body = environ["wsgi.input"].read()
        morals, vectors, payloads = self._read(environ, body)
        key: IdempotencyHash = NO_IDEMPOTENCY_HASH
        if KEY_MEMBER in environ:
            key = context.idempotency.hash_of(environ, morals, vectors, payloads)
        code, index = context.store.check_vectors(vectors, len(morals))
        if code != errors.OK:
            size = self.codec.size
            refuse_vector(code, memoryview(vectors)[index * size : (index + 1) * size], f"[{index}].event_vector")
        decisions, code = context.store.admit_batch(context.log_time(), morals, vectors, payloads, key)
        if rejected := sum([not decided[_MEMORY_ID] and not decided[_REPEATED] for decided in decisions]):
            context.count_rejected(client_of(environ).tier, rejected)
        if code != errors.OK:
            refund(environ, spent=len(decisions))
            self._refuse_rest(code, decisions, len(morals))
        if key and any(repeated for *_, repeated in decisions):
            environ[HEADER_LINES] = environ.get(HEADER_LINES, "") + REPLAYED
        accepted = sum([decided[_MEMORY_ID] != 0 for decided in decisions])
        results = b",".join([self._write(decided) for decided in decisions])
        return b'{"results":[%b],"accepted":%d,"rejected":%d}' % (results, accepted, len(decisions) - accepted)

    def _refuse_rest(self, code: int, decisions: list[DecisionFields], count: int) -> NoReturn:
        """Raise the problem of a batch that was stopped midway; the cause itself if no event was decided."""
        try:
            errors.raise_for(code)
        except errors.StoreError as error:
            if not decisions:
                raise
            reason = problem_of_store_error(error).problem_code
            context = self.context
            results = [to_decision_view(decided, context.boot_id, context.log_id) for decided in decisions]
            detail = f"The first {len(results)} of {count} events were decided; the rest were not ({reason})."
            # No Retry-After: a client that sends the whole batch again without an idempotency key would have its first
            # events decided twice.
            raise Problem(503, "batch_interrupted", detail, results=results) from error

    def _read(self, environ: WSGIEnvironment, body: bytes) -> Batch:
        """Return the events of a request. Raises Problem."""
        media = media_type(environ)
        if media == RAW:
            return self._read_raw(environ, body)
        try:
            events = self._of_json(environ, body) if media == JSON else self._of_msgpack(environ, body)
            morals = [check_moral_value(event.moral_value, f"[{i}].moral_value") for i, event in enumerate(events)]
            vectors = b"".join([decode_vector(self.codec, event, media, f"[{i}].") for i, event in enumerate(events)])
            payloads = [self._payloads.decode(event.payload, media, f"[{i}].payload") for i, event in enumerate(events)]
        except DECODE_ERRORS as error:
            refuse_body(error, body, media, MEMBERS)
        if media == JSON:
            refuse_repeats(body, count_colons(events))
        return Batch(array("d", morals), vectors, payloads)

    def _of_json(self, environ: WSGIEnvironment, body: bytes) -> list[Event]:
        """Return the events of a JSON body, with vectors and payloads not decoded yet. Raises one of DECODE_ERRORS."""
        events = self._decode_json(body)
        self._charge(environ, body, len(events))
        return events

    def _of_msgpack(self, environ: WSGIEnvironment, body: bytes) -> list[Event]:
        """Return the events of a msgpack body, with vectors and payloads not decoded yet. Raises one of DECODE_ERRORS.

        Each event is decoded by itself, because only the head of its map shows whether a member occurs twice.
        """
        if msgpack_count(body) > BATCH_COUNT.value:  # before each item becomes an object
            raise above_limit(BATCH_COUNT, "body", msgpack_count(body))
        items = self._split_packed_events(body)
        self._charge(environ, body, len(items))
        events = []
        for i, packed in enumerate(items):
            try:
                event = self._decode_packed_event(packed)
            except DECODE_ERRORS as error:
                refuse_body(error, bytes(packed), MSGPACK, MEMBERS, f"[{i}]")
            refuse_repeats_msgpack(packed, 2 + bool(event.payload), f"[{i}]")
            events.append(event)
        return events

    def _read_raw(self, environ: WSGIEnvironment, body: bytes) -> Batch:
        """Return the events of a raw body. Raises Problem."""
        count, rest = divmod(len(body), 8 + self.codec.size)
        if rest:
            raise invalid(
                "body",
                "dimension_mismatch",
                f"has {len(body)} bytes",
                f"n × {8 + self.codec.size}: n float64 moral values, then n × {self.codec.dimension} float32",
            )
        self._charge(environ, body, count)
        view = memoryview(body)
        morals = view[: 8 * count].cast("d")
        for i, moral in enumerate(morals):
            if not 0.0 <= moral <= 1.0:  # PERF: the name of the field is made for a refusal only
                check_moral_value(moral, f"[{i}].moral_value")
        return Batch(morals, view[8 * count :], None)

    def _charge(self, environ: WSGIEnvironment, body: bytes, count: int) -> None:
        """Check the number of events and charge for them, before any of them is decoded. Raises Problem."""
        check_count(count)
        refuse_above(len(body), count * self.event_size_max)
        self.context.charge(environ, count)


def check_count(count: int) -> None:
    """Raise the 422 for an empty or too long batch."""
    if count == 0:
        raise invalid("body", "batch_empty", "contains no event", f"1 to {BATCH_COUNT.value} events")
    if count > BATCH_COUNT.value:
        raise above_limit(BATCH_COUNT, "body", count)
