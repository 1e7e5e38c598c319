"""GET /decisions: the log, oldest first, with a cursor.

Every change of the committed state is here, not only decisions: `kind` tells. `after` is the position of the last entry
that the client has seen; the answer's `next` goes there for the following page. The log is a ring: a cursor that has
been overtaken is 410, because a page from there would silently miss entries.
"""

from collections.abc import Sequence
from typing import Final

import falcon
import msgspec

from app.context import Context
from app.events import encode
from app.memories import check_parameters
from app.problem import Problem, invalid
from app.vector import JSON
from core.limits import DECISIONS_PAGE
from core.rhythm import PHASE_NAMES
from shm import status
from shm._native import ffi
from shm.layout import FLAG_STOPPED, KINDS, NO_ROW
from shm.store import Entry

_DEFAULT: Final = 100


class ScalarState(msgspec.Struct):
    """The scalar state before or after an entry."""

    moral_filter_threshold: float
    ema: float
    phase: str
    counter: int
    step: int
    accepted_events_count: int
    rejected_events_count: int
    memory_used: int
    stopped: bool


class LogEntry(msgspec.Struct, omit_defaults=True):
    """One entry. `moral_value`, `accepted`, `sequence` for decisions; `memory_id` for accepted ones and deletions."""

    position: int
    kind: str
    age_seconds: float
    epoch: int
    before: ScalarState
    after: ScalarState
    worker: int | None = None
    sequence: int | None = None
    accepted: bool | None = None
    moral_value: float | None = None
    memory_id: int | None = None


class Page(msgspec.Struct):
    """One page. `next` is the cursor for the following page, `oldest` and `newest` the positions in reach."""

    entries: list[LogEntry]
    next: int
    oldest: int
    newest: int
    boot_id: str


class DecisionsResource:
    """The log."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return a page of the log."""
        context = self.context
        check_parameters(request, context.boot_id, "after", "limit")
        limit = _number(request, "limit", _DEFAULT, 1, DECISIONS_PAGE.value)
        newest = int(context.store.state().position)
        after = _number(request, "after", -1, 0, (1 << 63) - 1)
        try:
            if after < 0:
                entries, oldest, after = self._oldest(newest, limit)
            else:
                entries, oldest = context.store.entries(after + 1, limit)
        except status.Gone as error:
            detail = f"after: position {after + 1} has been overwritten; start again without `after`"
            raise Problem(410, "position_gone", detail, field="after") from error
        except status.Unknown as error:
            raise invalid(
                "after", "position_unknown", f"is {after}", f"at most the newest position, {newest}"
            ) from error
        now_ns = context.clock()
        response.content_type = JSON
        response.data = encode(
            Page(
                [_entry(entry, now_ns) for entry in entries],
                after + len(entries),
                oldest,
                max(newest, after + len(entries)),
                context.boot_id,
            )
        )

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way

    def _oldest(self, newest: int, limit: int) -> tuple[Sequence[Entry], int, int]:
        """Return the oldest page, the oldest position in reach and the position before the page. Raises Gone."""
        capacity = self.context.config.log_capacity
        after = max(0, newest + 1 - capacity)
        try:
            return *self.context.store.entries(after + 1, limit), after
        except status.Gone:  # overwritten while it was read: leave a page of slack
            after = newest + limit - capacity
            return *self.context.store.entries(after + 1, limit), after


def _entry(entry: Entry, now_ns: int) -> LogEntry:
    kind = KINDS[entry.kind]
    decided = ffi.cast("struct mlsdm_decided *", entry.detail) if kind in ("decision", "delete") else None
    decision = kind == "decision"
    return LogEntry(
        entry.position,
        kind,
        max(0, now_ns - entry.time_ns) // 1000 / 1e6,
        entry.epoch,
        _scalars(entry.before),
        _scalars(entry.after),
        None if entry.row == NO_ROW else entry.row,
        entry.after.accepted + entry.after.rejected if decision else None,
        decided.memory_id != 0 if decision and decided else None,
        decided.moral if decided else None,
        (decided.memory_id or None) if decided else None,
    )


def _scalars(scalars: Entry) -> ScalarState:
    return ScalarState(
        scalars.theta,
        scalars.ema,
        PHASE_NAMES[scalars.phase],
        scalars.counter,
        scalars.step,
        scalars.accepted,
        scalars.rejected,
        scalars.live,
        bool(scalars.flags & FLAG_STOPPED),
    )


def _number(request: falcon.Request, name: str, default: int, low: int, high: int) -> int:
    text = request.get_param(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
        code = DECISIONS_PAGE.code if name == "limit" else "field_invalid"
        raise invalid(name, code, f"is {text[:40]!r}", f"a whole number from {low} to {high}")
    return int(text)
