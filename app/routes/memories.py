"""GET and DELETE /memories/{id}: one memory by its id.

Ids are never reused. One that was overwritten or deleted answers 410 and one that was never given 404; an id that a
client kept from another boot means nothing here, so a client that names the `boot_id` it came with is told 410 too.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, NoReturn

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.media_types import JSON, encode
from app.api.codec.query_string import BOOT_ID, parse_parameters_of_boot
from app.api.codec.vector_codec import to_floats
from app.api.context import Context
from app.api.fields import AgeSeconds, BootId, MemoryId, MoralValue, Phase, Position, age_seconds, component
from app.api.operation import Operation, Parameter
from app.api.problem import Problem, invalid
from app.api.problem_codes import STORE
from core.access.keys import Role
from core.phases import PHASE_NAMES
from shm import errors


class MemoryView(msgspec.Struct, omit_defaults=True):
    """One memory. `vector` is there when asked for with include=vector."""

    memory_id: MemoryId
    moral_value: MoralValue
    phase: Phase
    age_seconds: AgeSeconds
    position: Position
    boot_id: BootId
    payload: Annotated[msgspec.Raw, Meta(examples=[{"text": "hello"}])] | None = None
    vector: Annotated[list[float], Meta(description="The vector as stored, float32.")] | None = None


@component("Forgotten")
class DeletionView(msgspec.Struct):
    """The answer to a deletion: the log position from which on the memory is never recalled again."""

    memory_id: MemoryId
    position: Position
    boot_id: BootId


_MEMORY_ID: Final = Parameter(
    "memory_id",
    "path",
    Annotated[int, Meta(ge=0, le=(1 << 63) - 1, examples=[1])],
    "The id that the decision gave.",
    required=True,
)
_REFUSALS: Final = (
    "memory_unknown", "memory_gone", "other_boot", "field_unknown", "field_repeated", "field_invalid", *STORE,
)  # fmt: skip
_INCLUDE: Final = Parameter("include", "query", Literal["vector"], "More than the default members.")


class MemoryResource:
    """One memory."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Read one memory.", Role.READ, MemoryView, parameters=(_MEMORY_ID, _INCLUDE, BOOT_ID), refusals=_REFUSALS,
        ),
        "DELETE": Operation(
            "Forget one memory for good; its bytes are erased.", Role.WRITE, DeletionView,
            parameters=(_MEMORY_ID, BOOT_ID), refusals=_REFUSALS,
        ),
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, request: falcon.Request, response: falcon.Response, memory_id: str) -> None:
        """Return one memory."""
        context = self.context
        given = parse_parameters_of_boot(request, context.boot_id, "include")
        number = _number(memory_id)
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
                age_seconds(memory.time_ns, context.clock()),
                memory.position,
                context.boot_id,
                msgspec.Raw(memory.payload) if memory.payload else None,
                to_floats(memory.vector) if include else None,
            )
        )

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way

    def on_delete(self, request: falcon.Request, response: falcon.Response, memory_id: str) -> None:
        """Forget one memory for good; its bytes are erased."""
        context = self.context
        parse_parameters_of_boot(request, context.boot_id)
        number = _number(memory_id)
        try:
            entry = context.store.forget(context.clock(), number)
        except errors.StoreError as error:
            _refuse(number, error)
        response.content_type = JSON
        response.data = encode(DeletionView(number, entry.position, context.boot_id))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise invalid("memory_id", "field_invalid", f"is {text[:40]!r}", "a memory id: digits")
    return int(text)


def _refuse(number: int, error: errors.StoreError) -> NoReturn:
    if isinstance(error, errors.Unknown):
        raise Problem(404, "memory_unknown", f"Memory {number} was never given.", field="memory_id") from error
    if isinstance(error, errors.Gone):
        raise Problem(410, "memory_gone", f"Memory {number} was overwritten or deleted.", field="memory_id") from error
    raise error
