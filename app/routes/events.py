"""POST /event and POST /events: the path that this service exists for.

Decode, validate, one native call, encode. Nothing is admitted before everything about the request has been found right:
a batch is validated whole. A batch is then admitted one section per item, so others may interleave with it; if it is
stopped on the way (a lock that cannot be had, an operator's stop), the answer says which of its events were decided,
because those are. With an idempotency key, what was decided before is not decided again
(app/api/access/idempotency_keys.py).
"""

from array import array
from collections.abc import Mapping
from typing import Annotated, Any, Final, NoReturn
from wsgiref.types import WSGIEnvironment

import falcon
import msgspec
from msgspec import Meta

from app.api.access.idempotency_keys import IDEMPOTENCY_KEY
from app.api.access.quotas import refund
from app.api.codec.body_errors import DECODE_ERRORS, msgpack_count, refuse_body, refuse_repeats, refuse_repeats_msgpack
from app.api.codec.body_sizes import event_size_max, refuse_above
from app.api.codec.event_codec import MEMBERS, Event, EventReader, colons_of, moral_value, payload_of, vector_of
from app.api.codec.media_types import JSON, MSGPACK, RAW, encode, media_type
from app.api.codec.vector_codec import refuse_vector
from app.api.context import Context
from app.api.decision_view import DecisionView, to_decision_view
from app.api.fields import component
from app.api.operation import Octets, Operation, Parameter
from app.api.problem import Problem, above_limit, invalid, problem_of_store_error
from app.api.problem_codes import EVENT
from app.httpd.request import HEADER_LINES
from core.access.keys import Role
from core.limits import BATCH_COUNT, BODY_SIZE
from shm import errors

REPLAYED: Final = "Idempotency-Replayed: true\r\n"
_Events = Annotated[list[Event], Meta(min_length=1, max_length=BATCH_COUNT.value)]


@component("Batch")
class BatchView(msgspec.Struct):
    """The answer to POST /events: one decision per event, in order."""

    results: list[DecisionView]
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

    def __init__(self, context: Context) -> None:
        self.size_max = event_size_max(context.config.dimension, context.payload_size_max)
        self.operations: Mapping[str, Operation] = {
            "POST": Operation(
                "Decide one event.", Role.WRITE, DecisionView,
                body={JSON: Event, MSGPACK: Event, RAW: Octets("The vector, little-endian float32, and nothing else.")},
                parameters=(MORAL_VALUE, IDEMPOTENCY_KEY), refusals=EVENT, cost=1, body_size_max=self.size_max,
            )
        }  # fmt: skip
        self.context = context
        self.read = EventReader(context.codec, context.payload_size_max).read
        self.fast_responders = {"POST": self.decide}

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Decide one event."""
        response.content_type = JSON
        response.data = self.decide(request.env)

    def decide(self, environ: WSGIEnvironment) -> bytes:
        """Decide one event; returns the decision as JSON."""
        context = self.context
        body = environ["wsgi.input"].read()
        refuse_above(len(body), self.size_max)
        moral, vector, payload = self.read(environ, body)
        key = context.idempotency.key_of(environ, body)
        try:
            decided = context.store.admit(context.clock(), moral, vector, payload, key)
        except errors.NotFinite:
            refuse_vector(errors.NOT_FINITE, vector, "event_vector")
        except errors.TooLong:
            refuse_vector(errors.TOO_LONG, vector, "event_vector")
        if decided.repeated:
            environ[HEADER_LINES] = environ.get(HEADER_LINES, "") + REPLAYED
        return encode(to_decision_view(decided, context.boot_id))


class BatchResource:
    """Many events per request."""

    def __init__(self, context: Context) -> None:
        self.event_size_max = event_size_max(context.config.dimension, context.payload_size_max)
        self.operations: Mapping[str, Operation] = {
            "POST": Operation(
                "Decide a batch of events, in order; validated whole before the first is decided.", Role.WRITE, BatchView,
                body={
                    JSON: _Events, MSGPACK: _Events,
                    RAW: Octets(
                        "n moral values, float64, then n vectors, float32; little-endian.", 8, BATCH_COUNT.value
                    ),
                },
                parameters=(IDEMPOTENCY_KEY,),
                refusals=(*EVENT, "batch_empty", BATCH_COUNT.code, "batch_above_burst", "batch_interrupted"),
                body_size_max=min(BODY_SIZE.value, BATCH_COUNT.value * self.event_size_max),
                item_size_max=self.event_size_max,
            )
        }  # fmt: skip
        self.context = context
        self.codec = context.codec
        self.of_json = msgspec.json.Decoder(list[Event]).decode
        self.of_msgpack = msgspec.msgpack.Decoder(Event).decode
        self.items_of_msgpack = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
        self.fast_responders = {"POST": self.decide}

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Decide a batch of events, in order."""
        response.content_type = JSON
        response.data = self.decide(request.env)

    def decide(self, environ: WSGIEnvironment) -> bytes:
        """Decide a batch of events, in order; returns the decisions as JSON."""
        context = self.context
        body = environ["wsgi.input"].read()
        morals, vectors, payloads = self._read(environ, body)
        key = context.idempotency.key_of(environ, body)
        code, bad = context.store.check_vectors(vectors, len(morals))
        if code != errors.OK:
            size = self.codec.size
            refuse_vector(code, memoryview(vectors)[bad * size : (bad + 1) * size], f"[{bad}].event_vector")
        decisions, code = context.store.admit_batch(context.clock(), morals, vectors, payloads, key)
        results = [to_decision_view(decided, context.boot_id) for decided in decisions]
        if code != errors.OK:
            refund(environ, spent=len(results))
            self._refuse_rest(code, results, len(morals))
        if key and any(repeated for *_, repeated in decisions):
            environ[HEADER_LINES] = environ.get(HEADER_LINES, "") + REPLAYED
        accepted = sum([result.accepted for result in results])
        return encode(BatchView(results, accepted, len(results) - accepted))

    @staticmethod
    def _refuse_rest(code: int, results: list[DecisionView], count: int) -> NoReturn:
        """Raise the answer to a batch that was stopped on its way; what stopped it when nothing was decided."""
        try:
            errors.raise_for(code)
        except errors.StoreError as error:
            if not results:
                raise
            reason = problem_of_store_error(error).problem_code
            detail = f"The first {len(results)} of {count} events were decided, the rest were not ({reason})."
            # No Retry-After: without an idempotency key, who sent all of it again would have its first events decided
            # twice.
            raise Problem(503, "batch_interrupted", detail, results=results) from error

    def _read(self, environ: WSGIEnvironment, body: bytes) -> tuple[Any, Any, list[bytes] | None]:
        """Return float64[n], float32[n × dimension] and the payloads of a request, or raise the Problem with it."""
        media = media_type(environ)
        if media == RAW:
            return self._read_raw(environ, body)
        try:
            events = self._of_json(environ, body) if media == JSON else self._of_msgpack(environ, body)
            size_max = self.context.payload_size_max
            morals = [moral_value(event.moral_value, f"[{i}].moral_value") for i, event in enumerate(events)]
            vectors = b"".join([vector_of(self.codec, event, media, f"[{i}].") for i, event in enumerate(events)])
            payloads = [payload_of(event, media, size_max, f"[{i}].") for i, event in enumerate(events)]
        except DECODE_ERRORS as error:
            refuse_body(error, media, MEMBERS)
        if media == JSON:
            refuse_repeats(body, colons_of(events, payloads))
        return array("d", morals), vectors, payloads

    def _of_json(self, environ: WSGIEnvironment, body: bytes) -> list[Event]:
        """Return the events of a JSON body, their vectors and payloads as they came. Raises one of DECODE_ERRORS."""
        events = self.of_json(body)
        self._take(environ, body, len(events))
        return events

    def _of_msgpack(self, environ: WSGIEnvironment, body: bytes) -> list[Event]:
        """Return the events of a msgpack body, each of whose maps names no member twice. Raises one of DECODE_ERRORS.

        One by one, because only the head of each map tells that; JSON has colons to count.
        """
        if msgpack_count(body) > BATCH_COUNT.value:  # before each of them becomes an object
            raise above_limit(BATCH_COUNT, "body", msgpack_count(body))
        items = self.items_of_msgpack(body)
        self._take(environ, body, len(items))
        events = []
        for i, packed in enumerate(items):
            try:
                event = self.of_msgpack(packed)
            except DECODE_ERRORS as error:
                refuse_body(error, MSGPACK, MEMBERS, f"[{i}]")
            refuse_repeats_msgpack(packed, 2 + bool(event.payload))
            events.append(event)
        return events

    def _read_raw(self, environ: WSGIEnvironment, body: bytes) -> tuple[Any, Any, None]:
        count, rest = divmod(len(body), 8 + self.codec.size)
        if rest:
            raise invalid(
                "body",
                "dimension_mismatch",
                f"has {len(body)} bytes",
                f"n × {8 + self.codec.size}: n float64 moral values, then n × {self.codec.dimension} float32",
            )
        self._take(environ, body, count)
        view = memoryview(body)
        morals = view[: 8 * count].cast("d")
        for i, moral in enumerate(morals):
            if not 0.0 <= moral <= 1.0:  # PERF: the name of the field is for the refusal alone
                moral_value(moral, f"[{i}].moral_value")
        return morals, view[8 * count :], None

    def _take(self, environ: WSGIEnvironment, body: bytes, count: int) -> None:
        """Charge for a batch as soon as it is known how many events it has: before each of them is looked at."""
        check_count(count)
        refuse_above(len(body), count * self.event_size_max)
        self.context.charge(environ, count)


def check_count(count: int) -> None:
    """Raise the Problem with an empty or too long batch."""
    if count == 0:
        raise invalid("body", "batch_empty", "holds no event", f"1 to {BATCH_COUNT.value} events")
    if count > BATCH_COUNT.value:
        raise above_limit(BATCH_COUNT, "body", count)
