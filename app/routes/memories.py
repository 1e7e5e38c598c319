"""GET and DELETE /memories/{id}: one memory by its id.

Ids are never reused. The id of an overwritten or deleted memory answers 410, an id that was never given 404. An id
from another history is not valid here, so a client that sends the `log_id` or `boot_id` of its id gets 410 as well.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, NoReturn

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.media_types import JSON, encode
from app.api.codec.query_string import BOOT_ID, LOG_ID, parameters_of_log
from app.api.codec.rfc3339 import rfc3339
from app.api.codec.vector_codec import to_floats
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
from app.api.operation import Operation, Parameter
from app.api.problem import Problem, invalid
from app.api.problem_codes import STORE
from core.access.keys import Role
from core.phases import PHASE_NAMES
from shm import errors


class MemoryView(msgspec.Struct, omit_defaults=True):
    """One memory. `vector` is present only with include=vector."""

    memory_id: MemoryId
    moral_value: MoralValue
    phase: Phase
    age_seconds: AgeSeconds
    position: Position
    boot_id: BootId
    log_id: LogId
    created_at: CreatedAt
    payload: Annotated[msgspec.Raw, Meta(examples=[{"text": "hello"}])] | None = None
    vector: Annotated[list[float], Meta(description="The stored vector (float32).")] | None = None


@component("Forgotten")
class DeletionView(msgspec.Struct):
    """A deletion: from this log position on, the memory is never recalled."""

    memory_id: MemoryId
    position: Position
    boot_id: BootId
    log_id: LogId


_MEMORY_ID: Final = Parameter(
    "memory_id",
    "path",
    Annotated[int, Meta(ge=0, le=(1 << 63) - 1, examples=[1])],
    "The `memory_id` of the decision.",
    required=True,
)
_REFUSALS: Final = ("memory_unknown", "memory_gone", "other_boot", "field_invalid", *STORE)
_INCLUDE: Final = Parameter("include", "query", Literal["vector"], "Adds the stored vector to the response.")


class MemoryResource:
    """GET and DELETE /memories/{memory_id}."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Read one memory.", Role.READ, MemoryView,
            parameters=(_MEMORY_ID, _INCLUDE, BOOT_ID, LOG_ID), refusals=_REFUSALS,
        ),
        "DELETE": Operation(
            "Delete one memory permanently and erase its bytes.", Role.WRITE, DeletionView,
            parameters=(_MEMORY_ID, BOOT_ID, LOG_ID), refusals=_REFUSALS,
        ),
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, request: falcon.Request, response: falcon.Response, memory_id: str) -> None:
        """Return one memory."""
        context = self.context
        given = parameters_of_log(request, context)
        number = _parse_id(memory_id)
        include = given.get("include")
        if include is not None and include != "vector":
            raise invalid("include", "field_invalid", f"is {include[:40]!r}", "vector")
        try:
            memory = context.store.memory(number)
        except errors.StoreError as error:
            _refuse(number, error)
        response.content_type = JSON
        response.data = encode(
            MemoryView(
                memory.id,
                memory.moral,
                PHASE_NAMES[memory.phase],
                age_seconds(memory.time_ns, context.log_time()),
                memory.position,
                context.boot_id,
                context.log_id,
                rfc3339(memory.time_ns),
                msgspec.Raw(memory.payload) if memory.payload else None,
                to_floats(memory.vector) if include else None,
            )
        )

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body

    def on_delete(self, request: falcon.Request, response: falcon.Response, memory_id: str) -> None:
        """Delete one memory permanently and erase its bytes."""
        context = self.context
        parameters_of_log(request, context)
        number = _parse_id(memory_id)
        try:
            entry = context.store.forget(context.log_time(), number)
        except errors.StoreError as error:
            _refuse(number, error)
        response.content_type = JSON
        response.data = encode(DeletionView(number, entry.position, context.boot_id, context.log_id))


def _parse_id(text: str) -> int:
    """Return the memory id in a path. Raises 422."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise invalid("memory_id", "field_invalid", f"is {text[:40]!r}", "a memory id, in digits")
    return int(text)


def _refuse(number: int, error: errors.StoreError) -> NoReturn:
    """Raise the problem for an exception of the store about memory `number`."""
    if isinstance(error, errors.Unknown):
        raise Problem(404, "memory_unknown", f"No memory has been given the id {number}.", field="memory_id") from error
    if isinstance(error, errors.Gone):
        detail = f"Memory {number} was overwritten, deleted or lost."
        raise Problem(410, "memory_gone", detail, field="memory_id") from error
    raise error
