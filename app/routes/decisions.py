"""GET /decisions: the log, oldest first, with a cursor.

The log holds every change of the committed state, not only decisions; `kind` tells them apart. `after` is the position
of the last entry that the client has seen: it takes `next` of the previous page. The log is a ring, so a cursor that
was overwritten is 410: a page from there would silently miss entries.

Perf: a page is read and encoded in pieces, between which the worker serves other requests (app/httpd/long_answers.py).
An error in the first piece refuses the request. A later piece that was overwritten meanwhile ends the page early: its
entries are correct and without a gap, `next` points behind them, and the next request reports the error.
Rejected: reading the whole page first, which takes 0.7 ms in one turn of the loop.

HEAD has no Content-Length, because the length is unknown until the page is made (RFC 9110 §9.3.2 permits this).
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, ClassVar, Final

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.media_types import JSON, encode
from app.api.codec.query_string import BOOT_ID, parameters_of_boot, parse_whole_number
from app.api.context import Context
from app.api.fields import (
    Accepted,
    AgeSeconds,
    BootId,
    Ema,
    Live,
    MemoryId,
    MoralValue,
    Ordinal,
    Phase,
    Position,
    Rejected,
    Step,
    Threshold,
    age_seconds,
    component,
)
from app.api.operation import Operation, Parameter
from app.api.problem import Problem, invalid
from app.api.problem_codes import STORE
from core.access.keys import Role
from core.limits import DECISIONS_PAGE
from core.phases import PHASE_NAMES
from shm import errors
from shm.layout import FLAG_STOPPED, KINDS, NO_ROW
from shm.records import Entry, Scalars, decided_of

_LIMIT_DEFAULT: Final = 100  # entries
_PIECE_COUNT: Final = 50  # entries of about 4.5 µs each
_POSITION_MAX: Final = (1 << 63) - 1


_Kind = Annotated[
    str, Meta(description="The kind of change.", examples=["decision"], extra_json_schema={"enum": [*KINDS[1:]]})
]


class ScalarState(msgspec.Struct):
    """The scalar state before or after an entry."""

    moral_filter_threshold: Threshold
    ema: Ema
    phase: Phase
    counter: Annotated[int, Meta(description="Steps of the rhythm until the phase changes.", ge=0, examples=[6])]
    step: Step
    accepted_events_count: Accepted
    rejected_events_count: Rejected
    memory_used: Live
    stopped: Annotated[bool, Meta(description="Whether an operator has stopped admissions.", examples=[False])]


class LogEntry(msgspec.Struct, omit_defaults=True):
    """One entry of the log.

    Decisions have `sequence`, `accepted` and `moral_value`; accepted ones and deletions have `memory_id`.
    """

    position: Position
    kind: _Kind
    age_seconds: AgeSeconds
    epoch: Annotated[int, Meta(description="Number of the controller at that time.", ge=0, examples=[1])]
    before: ScalarState
    after: ScalarState
    worker: (
        Annotated[int, Meta(description="Row of the worker that wrote it; missing for the controller.", ge=0)] | None
    ) = None
    sequence: Ordinal | None = None
    accepted: bool | None = None
    moral_value: MoralValue | None = None
    memory_id: MemoryId | None = None


@component("Page")
class LogPage(msgspec.Struct):
    """One page. `next` is the cursor for the following page, `oldest` and `newest` are the positions that can be read.

    A page may have fewer entries than `limit`: the end of the log is reached when `next` equals `newest`.
    """

    entries: list[LogEntry]
    next: Position
    oldest: Position
    newest: Position
    boot_id: BootId


class DecisionsResource:
    """GET /decisions."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Read a page of the log, oldest first.", Role.READ, LogPage, parameters=(
                Parameter(
                    "after", "query", Annotated[int, Meta(ge=0, le=_POSITION_MAX)],
                    "Position of the last entry that the client has seen (default: start at the oldest entry).",
                ),
                Parameter(
                    "limit", "query", Annotated[int, Meta(ge=1, le=DECISIONS_PAGE.value, examples=[10])],
                    f"Maximum number of entries (default {_LIMIT_DEFAULT}).",
                ),
                BOOT_ID,
            ),
            refusals=(
                "position_gone", "other_boot", "position_unknown", DECISIONS_PAGE.code, "field_invalid", *STORE,
            ),
            in_pieces=True,
        )
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return a page of the log."""
        context = self.context
        given = parameters_of_boot(request, context.boot_id)
        limit = parse_whole_number(given, "limit", _LIMIT_DEFAULT, 1, DECISIONS_PAGE.value, code=DECISIONS_PAGE.code)
        newest = int(context.store.state().position)
        after = parse_whole_number(given, "after", -1, 0, _POSITION_MAX, code="field_invalid")
        try:
            entries, oldest, after = self._read_oldest(newest, limit) if after < 0 else self._read(after, limit)
        except errors.Gone as error:
            detail = f"after: position {after + 1} has been overwritten; start again without `after`"
            raise Problem(410, "position_gone", detail, field="after") from error
        except errors.Unknown as error:
            raise invalid(
                "after", "position_unknown", f"is {after}", f"at most the newest position, {newest}"
            ) from error
        response.content_type = JSON
        response.stream = self._encode_in_pieces(
            entries, after, limit, LogPage([], after, oldest, newest, context.boot_id)
        )

    on_head = on_get  # RFC 9110 §9.1; Falcon drops the stream before its first piece is made

    def _read_oldest(self, newest: int, limit: int) -> tuple[Sequence[Entry], int, int]:
        """Return the first piece of the oldest page, like `_read`. Raises Gone."""
        capacity = self.context.config.log_capacity
        try:
            return self._read(max(0, newest + 1 - capacity), limit)
        except errors.Gone:  # overwritten while it was read: start one page later
            return self._read(newest + limit - capacity, limit)

    def _read(self, after: int, limit: int) -> tuple[Sequence[Entry], int, int]:
        """Return at most `limit` entries after position `after`, the oldest readable position, and `after`.

        Raises Gone and Unknown.
        """
        return *self.context.store.entries(after + 1, min(limit, _PIECE_COUNT)), after

    def _encode_in_pieces(
        self, entries: Sequence[Entry], after: int, limit: int, page: LogPage
    ) -> Generator[bytes, None, None]:
        """Yield the page as JSON, in pieces that take a quarter of a millisecond each.

        `entries` is the first piece, which follows position `after`; `page` is the page without its entries.
        """
        now_ns = self.context.clock()
        opening, _ = encode(page).split(b"[]", 1)
        yield opening + b"["
        separator = b""
        while entries:
            yield separator + encode([_entry_view(entry, now_ns) for entry in entries])[1:-1]
            separator = b","
            limit -= len(entries)
            after += len(entries)
            if len(entries) < _PIECE_COUNT or not limit:
                break
            try:
                entries, page.oldest, _ = self._read(after, limit)
            except errors.StoreError:
                break
        page.next, page.newest = after, max(page.newest, after)
        yield b"]" + encode(page).split(b"[]", 1)[1]


def _entry_view(entry: Entry, now_ns: int) -> LogEntry:
    kind = KINDS[entry.kind]
    decided = decided_of(entry) if kind in ("decision", "delete") else None
    decision = kind == "decision"
    return LogEntry(
        entry.position,
        kind,
        age_seconds(entry.time_ns, now_ns),
        entry.epoch,
        _state_view(entry.before),
        _state_view(entry.after),
        None if entry.row == NO_ROW else entry.row,
        entry.after.accepted + entry.after.rejected if decision else None,
        decided.memory_id != 0 if decision and decided else None,
        decided.moral if decided else None,
        (decided.memory_id or None) if decided else None,
    )


def _state_view(scalars: Scalars) -> ScalarState:
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
