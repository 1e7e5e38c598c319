"""POST /recall: the memories nearest to a vector, exactly.

The body carries the vector in the same forms as an event. A raw body is the vector alone; the other parameters are then
in the query string.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple, cast, get_args

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.body_errors import DECODE_ERRORS, refuse_body, refuse_repeats, refuse_repeats_msgpack
from app.api.codec.body_sizes import query_size_max, refuse_above
from app.api.codec.media_types import JSON, MSGPACK, RAW, encode, media_type
from app.api.codec.query_string import parameters_of, parse_whole_number
from app.api.codec.rfc3339 import rfc3339_of
from app.api.codec.vector_codec import VECTOR_SCHEMA, FloatBuffer, refuse_vector, to_floats
from app.api.context import Context
from app.api.fields import (
    AgeSeconds,
    BootId,
    CreatedAt,
    LogId,
    MemoryId,
    MoralValue,
    Phase,
    Position,
    age_seconds,
    component,
)
from app.api.operation import Octets, Operation, Parameter
from app.api.problem import invalid
from app.api.problem_codes import BODY, DECIDED
from core.access.keys import Role
from core.limits import TOP_K
from core.phases import PHASE_NAMES, PhaseWindow, phase_masks
from shm import errors
from shm.recall import Match

Include = Literal["payload", "vector"]
_TOP_K_DEFAULT: Final = 10
_PHASES: Final = get_args(PhaseWindow)
_INCLUDES: Final = get_args(Include)
_TopK = Annotated[int, Meta(description="Maximum number of matches.", ge=1, le=TOP_K.value, examples=[3])]
_Phase = Annotated[PhaseWindow, Meta(description="Phase filter; `current` is the present phase of the rhythm.")]
_Includes = Annotated[list[Include], Meta(description="Further members of each match.", examples=[["payload"]])]
MEMBERS: Final = {
    "vector": "an array of numbers, or base64 of little-endian float32",
    "top_k": f"a whole number from 1 to {TOP_K.value}",
    "phase": "any, wake, sleep or current",
    "include": "an array of payload and vector",
}


_members_of_json = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_members_of_msgpack = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


@component("Query")
class RecallQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A recall. `include` adds members to each match."""

    vector: Annotated[msgspec.Raw, Meta(extra_json_schema=VECTOR_SCHEMA)]
    top_k: _TopK = _TOP_K_DEFAULT
    phase: _Phase = "any"
    include: _Includes = []


class RecallOptions(NamedTuple):
    """The parameters of a recall with a raw body, from the query string; `include` is separated by commas."""

    top_k: int
    phase: PhaseWindow
    include: list[str]


@component("Found")
class MatchView(msgspec.Struct, omit_defaults=True):
    """A memory that matches. `age_seconds` counts from its admission; `payload` is the JSON value of its event."""

    memory_id: MemoryId
    score: Annotated[
        float,
        Meta(description="Cosine of the two vectors; 0 if one of them is zero.", ge=-1, le=1, examples=[0.97]),
    ]
    phase: Phase
    moral_value: MoralValue
    age_seconds: AgeSeconds
    created_at: CreatedAt
    payload: Annotated[msgspec.Raw, Meta(examples=[{"text": "hello"}])] | None = None
    vector: Annotated[list[float], Meta(description="The stored vector (float32).")] | None = None


@component("Recalled")
class RecallView(msgspec.Struct):
    """The matches, best first: equal to brute force over all live memories immediately after position `as_of`."""

    matches: list[MatchView]
    scanned: Annotated[int, Meta(description="Number of live memories that were compared.", ge=0, examples=[7])]
    as_of: Position
    exact: Annotated[Literal[True], Meta(description="Always true: a recall never approximates.")]
    boot_id: BootId
    log_id: LogId


_PARAMETERS: Final = (
    Parameter("top_k", "query", _TopK, f"Maximum number of matches (default 10). Only with a body in `{RAW}`."),
    Parameter("phase", "query", PhaseWindow, f"Phase filter (default `any`). Only with a body in `{RAW}`."),
    Parameter(
        "include",
        "query",
        Annotated[str, Meta(pattern="^(payload|vector)(,(payload|vector))*$", examples=["payload"])],
        f"`payload`, `vector` or both, separated by a comma. Only with a body in `{RAW}`.",
    ),
)


class RecallResource:
    """POST /recall."""

    def __init__(self, context: Context, blocks: bool) -> None:
        """`blocks`: run on the thread pool, because the store is too large to be scanned on the loop."""
        self.size_max = query_size_max(context.config.dimension)
        self.operations: Mapping[str, Operation] = {
            "POST": Operation(
                "Find the memories nearest to a vector, exactly.", Role.READ, RecallView,
                body={
                    JSON: RecallQuery, MSGPACK: RecallQuery,
                    RAW: Octets("The vector as little-endian float32, without anything else."),
                },
                parameters=_PARAMETERS, refusals=(*BODY, *DECIDED, TOP_K.code), cost=1,
                body_size_max=self.size_max, compressed=True, blocks=blocks, in_turn=not blocks,
            )
        }  # fmt: skip
        self.context = context
        self.codec = context.codec
        self.tolerance = context.config.recall.phase_tolerance
        self.of_json = msgspec.json.Decoder(RecallQuery).decode
        self.of_msgpack = msgspec.msgpack.Decoder(RecallQuery).decode

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Find the memories nearest to a vector."""
        context = self.context
        vector, asked = self._read(request)
        payloads, vectors = "payload" in asked.include, "vector" in asked.include
        try:
            answer = context.recall.nearest(
                vector, asked.top_k, phase_masks(asked.phase, self.tolerance), payloads, vectors
            )
        except errors.NotFinite:
            refuse_vector(errors.NOT_FINITE, vector, "vector")
        except errors.TooLong:
            refuse_vector(errors.TOO_LONG, vector, "vector")
        now_ns = context.log_time()
        response.content_type = JSON
        response.data = encode(
            RecallView(
                match_views(answer.matches, now_ns),
                answer.scanned,
                answer.as_of,
                True,
                context.boot_id,
                context.log_id,
            )
        )

    def _read(self, request: falcon.Request) -> tuple[FloatBuffer, RecallQuery | RecallOptions]:
        """Return the vector, float32-LE[dimension], and the parameters of a request. Raises Problem."""
        body = request.env["wsgi.input"].read()
        refuse_above(len(body), self.size_max)
        media = media_type(request.env)
        given = parameters_of(request)
        if media == RAW:
            return self.codec.of_bytes(body, "body"), _parse_options(given)
        if given:
            raise invalid(next(iter(given)), "field_unknown", "is in the query", f"members of the {media}")
        try:
            if media == JSON:
                query = self.of_json(body)
                vector = self.codec.of_json(query.vector, "vector")
                refuse_repeats(body, len(_members_of_json(body)))
                return vector, query
            query = self.of_msgpack(body)
            refuse_repeats_msgpack(body, len(_members_of_msgpack(body)))
            return self.codec.of_msgpack(query.vector, "vector"), query
        except DECODE_ERRORS as error:
            refuse_body(error, body, media, MEMBERS, codes={"top_k": TOP_K.code})


def _parse_options(given: Mapping[str, str]) -> RecallOptions:
    """Return the options in the parameters of a query. Raises 422."""
    phase = given.get("phase", "any")
    if phase not in _PHASES:
        raise invalid("phase", "field_invalid", f"is {phase[:40]!r}", MEMBERS["phase"])
    include = given["include"].split(",") if "include" in given else []
    for i, member in enumerate(include):
        if member not in _INCLUDES:
            raise invalid(f"include[{i}]", "field_invalid", f"is {member[:40]!r}", "payload or vector")
    return RecallOptions(
        parse_whole_number(given, "top_k", _TOP_K_DEFAULT, 1, TOP_K.value, code=TOP_K.code),
        cast(PhaseWindow, phase),
        include,
    )


def match_views(matches: Sequence[Match], now_ns: int) -> list[MatchView]:
    """Return the views of matches; `now_ns` is the log time from which their ages are counted."""
    return [
        MatchView(
            match.id,
            match.score,
            PHASE_NAMES[match.phase],
            match.moral,
            age_seconds(match.time_ns, now_ns),
            created_at,
            msgspec.Raw(match.payload) if match.payload else None,
            to_floats(match.vector) if match.vector else None,
        )
        for match, created_at in zip(matches, rfc3339_of([match.time_ns for match in matches]), strict=True)
    ]
