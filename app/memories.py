"""GET and DELETE /memories/{id}: one memory by its id.

Ids are never reused. One that was overwritten or deleted answers 410 and one that was never given 404; an id that a
client kept from another boot means nothing here, so a client that names the `boot_id` it came with is told 410 too.
"""

from typing import NoReturn

import falcon
import msgspec

from app.context import Context
from app.events import encode
from app.problem import Problem, invalid
from app.recall import age_seconds
from app.vector import JSON, floats_of
from core.rhythm import PHASE_NAMES
from shm import status


class MemoryView(msgspec.Struct, omit_defaults=True):
    """One memory. `vector` is there when asked for with include=vector."""

    memory_id: int
    moral_value: float
    phase: str
    age_seconds: float
    position: int
    boot_id: str
    payload: msgspec.Raw | None = None
    vector: list[float] | None = None


class Forgotten(msgspec.Struct):
    """The answer to a deletion: the log position from which on the memory is never recalled again."""

    memory_id: int
    position: int
    boot_id: str


class MemoryResource:
    """One memory."""

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
