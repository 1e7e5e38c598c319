"""GET and DELETE /memories/{id}: one memory by its id.

Ids are never reused. One that was overwritten or deleted answers 410 and one that was never given 404; an id that a
client kept from another boot means nothing here, so a client that names the `boot_id` it came with is told 410 too.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, NoReturn

import falcon
import msgspec
from msgspec import Meta

from app.codes import STORE
from app.context import Context
from app.glossary import AgeSeconds, BootId, MemoryId, MoralValue, Phase, Position
from app.media import JSON, encode
from app.operation import Operation, Parameter
from app.problem import Problem, invalid
from app.recall import age_seconds
from app.vector import floats_of
from core.keys import Role
from core.rhythm import PHASE_NAMES
from shm import status


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


class Forgotten(msgspec.Struct):
    """The answer to a deletion: the log position from which on the memory is never recalled again."""

    memory_id: MemoryId
    position: Position
    boot_id: BootId


BOOT_ID: Final = Parameter("boot_id", "query", str, "The memory that ids and positions came from; another one is 410.")
_MEMORY_ID: Final = Parameter(
    "memory_id",
    "path",
    Annotated[int, Meta(ge=0, le=(1 << 63) - 1, examples=[1])],
    "The id that the decision gave.",
    required=True,
)
_REFUSALS: Final = ("memory_unknown", "memory_gone", "other_boot", "field_unknown", "field_invalid", *STORE)
_INCLUDE: Final = Parameter("include", "query", Literal["vector"], "More than the default members.")


class MemoryResource:
    """One memory."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Read one memory.", Role.READ, MemoryView, parameters=(_MEMORY_ID, _INCLUDE, BOOT_ID), refusals=_REFUSALS,
        ),
        "DELETE": Operation(
            "Forget one memory for good; its bytes are erased.", Role.WRITE, Forgotten,
            parameters=(_MEMORY_ID, BOOT_ID), refusals=_REFUSALS,
        ),
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, request: falcon.Request, response: falcon.Response, memory_id: str) -> None:
        """Return one memory."""
        context = self.context
        number = self._number(request, memory_id, "include")
        include = request.get_param("include")
        if include not in (None, "vector"):
            raise invalid("include", "field_invalid", f"is {include[:40]!r}", "vector")
        try:
            memory = context.store.memory(number)
        except status.StoreError as error:
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
                floats_of(memory.vector) if include else None,
            )
        )

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way

    def on_delete(self, request: falcon.Request, response: falcon.Response, memory_id: str) -> None:
        """Forget one memory for good; its bytes are erased."""
        context = self.context
        number = self._number(request, memory_id)
        try:
            entry = context.store.forget(context.clock(), number)
        except status.StoreError as error:
            _refuse(number, error)
        response.content_type = JSON
        response.data = encode(Forgotten(number, entry.position, context.boot_id))

    def _number(self, request: falcon.Request, text: str, *parameters: str) -> int:
        check_parameters(request, self.context.boot_id, *parameters)
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise invalid("memory_id", "field_invalid", f"is {text[:40]!r}", "a memory id: digits")
        return int(text)


def check_parameters(request: falcon.Request, boot_id: str, *names: str) -> None:
    """Raise 422 for a parameter beside `boot_id` and `names`, and 410 when the client names another boot than this.

    A misspelt `boot_id` that was ignored would delete another memory than the one that was meant.
    """
    for name in request.params:
        if name != "boot_id" and name not in names:
            raise invalid(name[:40], "field_unknown", "is unknown", "one of " + ", ".join(("boot_id", *names)))
    named = request.get_param("boot_id")
    if named is not None and named != boot_id:
        detail = f"boot_id: {named[:40]!r} is another memory than this one, which began empty; expected {boot_id}"
        raise Problem(410, "other_boot", detail, field="boot_id", expected=boot_id)


def _refuse(number: int, error: status.StoreError) -> NoReturn:
    if isinstance(error, status.Unknown):
        raise Problem(404, "memory_unknown", f"Memory {number} was never given.", field="memory_id") from error
    if isinstance(error, status.Gone):
        raise Problem(410, "memory_gone", f"Memory {number} was overwritten or deleted.", field="memory_id") from error
    raise error
