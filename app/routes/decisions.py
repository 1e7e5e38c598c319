"""GET /decisions: the log, oldest or newest first, with a cursor.

The log holds every change of the committed state, not only decisions; `kind` tells them apart. `after` is the position
of the last entry that the client has seen: it takes `next` or `cursor` of the previous page. The log is a ring, so a
cursor that was overwritten is 410: a page from there would silently miss entries. With the newest first it is the end
of the log.

Perf: a page is read and encoded in pieces, between which the worker serves other requests (app/httpd/long_answers.py).
An error in the first piece refuses the request. A later piece that was overwritten meanwhile ends the page early: its
entries are correct and without a gap, `next` points behind them, and the next request reports the error.
With `kind` a page looks at _SCAN_COUNT_MAX entries at most, and `next` is the last one that it has looked at.
Rejected: reading the whole page first, which takes 0.7 ms in one turn of the loop.

HEAD has no Content-Length, because the length is unknown until the page is made (RFC 9110 §9.3.2 permits this).
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal, cast, get_args

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.media_types import JSON, encode
from app.api.codec.query_string import BOOT_ID, LOG_ID, parameters_of_log, parse_cursor, parse_whole_number
from app.api.codec.rfc3339 import rfc3339_of
from app.api.context import Context
from app.api.fields import (
    Accepted,
    AgeSeconds,
    BootId,
    CreatedAt,
    Cursor,
    Ema,
    Live,
    LogId,
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
from shm.store import Store

Order = Literal["oldest", "newest"]
_ORDERS: Final = get_args(Order)
# Clients may ask for `epoch`, which is the kind of no entry.
_KINDS_ASKED: Final = (*KINDS[1:], "epoch")
_KIND: Final = "|".join(_KINDS_ASKED)
_LIMIT_DEFAULT: Final = 100  # entries
_PIECE_COUNT: Final = 50  # entries of about 4.5 µs each
_SCAN_COUNT_MAX: Final = 10_000  # entries, of about 0.5 µs each where they are left out
_POSITION_MAX: Final = (1 << 63) - 1


_Kind = Annotated[
    str, Meta(description="The kind of change.", examples=["decision"], extra_json_schema={"enum": [*KINDS[1:]]})
]


_Epoch = Annotated[
    int,
    Meta(
        description="Number of the newest controller when this page was made: equal for all entries.",
        ge=0, examples=[1], extra_json_schema={"deprecated": True},
    ),
]  # fmt: skip


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

    Decisions have `sequence`, `accepted` and `moral_value`; accepted ones, deletions and losses have `memory_id`.
    """

    position: Position
    kind: _Kind
    age_seconds: AgeSeconds
    created_at: CreatedAt
    epoch: _Epoch
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
    """One page. `next` and `cursor` lead to the following one; `oldest` and `newest` are the positions in reach.

    A page may have fewer entries than `limit`, with `kind` even none: the end of the log is reached when `next` equals
    `newest`; with `order=newest`, when `next` is at most `oldest`.
    """

    entries: list[LogEntry]
    next: Position
    oldest: Position
    newest: Position
    boot_id: BootId
    log_id: LogId
    cursor: Annotated[Cursor, Meta(description="`log_id:next`: `next` as a cursor that no other history accepts.")]


class DecisionsResource:
    """GET /decisions."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Read a page of the log, oldest or newest first.", Role.READ, LogPage, parameters=(
                Parameter(
                    "after", "query", Annotated[int, Meta(ge=0, le=_POSITION_MAX)] | Cursor,
                    "Position of the last entry that the client has seen, or `cursor` of the previous page (default: "
                    "start at the first in `order`).",
                ),
                Parameter("order", "query", Order, "Which entries come first (default `oldest`)."),
                Parameter(
                    "kind", "query", Annotated[str, Meta(pattern=f"^({_KIND})(,({_KIND}))*$")],
                    "Kinds of the entries, separated by commas (default: all).",
                ),
                Parameter(
                    "limit", "query", Annotated[int, Meta(ge=1, le=DECISIONS_PAGE.value, examples=[10])],
                    f"Maximum number of entries (default {_LIMIT_DEFAULT}).",
                ),
                BOOT_ID,
                LOG_ID,
            ),
            refusals=(
                "position_gone", "other_boot", "position_unknown", DECISIONS_PAGE.code, "field_invalid", *STORE,
            ),
            compressed=True, in_pieces=True,
        )
    }  # fmt: skip

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return a page of the log."""
        context = self.context
        given = parameters_of_log(request, context)
        limit = parse_whole_number(given, "limit", _LIMIT_DEFAULT, 1, DECISIONS_PAGE.value, code=DECISIONS_PAGE.code)
        after = parse_cursor(given, "after", context.log_id, _POSITION_MAX)
        order, kinds = _parse_order(given), _parse_kinds(given)
        newest = int(context.store.state().position)
        scan = _Scan(context.store, context.config.log_capacity, newest, after, order)
        try:
            entries = scan.read_first(min(limit, _PIECE_COUNT))
        except errors.Gone as error:
            detail = f"after: position {after + 1} has been overwritten; start again without `after`"
            raise Problem(410, "position_gone", detail, field="after") from error
        except errors.Unknown as error:
            raise invalid(
                "after", "position_unknown", f"is {after}", f"at most the newest position, {newest}"
            ) from error
        response.content_type = JSON
        page = LogPage([], scan.position, scan.oldest, newest, context.boot_id, context.log_id, "")
        response.stream = self._encode_in_pieces(scan, entries, limit, kinds, page)

    on_head = on_get  # RFC 9110 §9.1; Falcon drops the stream before its first piece is made

    def _encode_in_pieces(
        self, scan: "_Scan", entries: Sequence[Entry], limit: int, kinds: Collection[int], page: LogPage
    ) -> Generator[bytes, None, None]:
        """Yield the page as JSON, in pieces that take a quarter of a millisecond each.

        `entries` is the first piece of `scan`; `page` is the page without its entries.
        """
        now_ns = self.context.log_time()
        opening, _ = encode(page).split(b"[]", 1)
        yield opening + b"["
        separator, looked_at = b"", 0
        asked = min(limit, _PIECE_COUNT)
        while entries:
            looked_at += len(entries)
            is_last = len(entries) < asked or looked_at >= _SCAN_COUNT_MAX
            chosen = [entry for entry in entries if entry.kind in kinds]
            if len(chosen) >= limit:
                chosen = chosen[:limit]
                scan.position = chosen[-1].position
            limit -= len(chosen)
            times = rfc3339_of([entry.time_ns for entry in chosen])
            views = [
                _entry_view(entry, created_at, now_ns, scan.epoch)
                for entry, created_at in zip(chosen, times, strict=True)
            ]
            yield separator + encode(views)[1:-1] if views else b""
            separator = b"," if chosen else separator
            if is_last or not limit:
                break
            asked = _PIECE_COUNT if len(kinds) < len(_ALL) else min(limit, _PIECE_COUNT)
            try:
                entries = scan.read(asked)
            except errors.StoreError:
                break
        page.cursor = f"{page.log_id}:{scan.position}"
        page.next, page.oldest, page.newest = scan.position, scan.oldest, max(page.newest, scan.position)
        yield b"]" + encode(page).split(b"[]", 1)[1]


class _Scan:
    """Reads the log in pieces, in one direction."""

    def __init__(self, store: Store, capacity: int, newest: int, after: int, order: Order) -> None:
        """`after` is the position behind which to begin, -1 for the first entry in `order`."""
        self._store = store
        self._capacity = capacity
        self._newest = newest
        self._is_backward = order == "newest"
        self._is_from_start = after < 0
        self.epoch = store.block.epoch
        self.oldest = self._oldest_of(newest)  # that can be read, as of the last read
        self.position = after  # of the last entry that was read

    def read_first(self, count: int) -> Sequence[Entry]:
        """Return the first piece, like `read`. Raises Unknown and Gone for a wrong position to begin at."""
        if self._is_backward:
            if self.position > self._newest:
                raise errors.Unknown
            if self._is_from_start:
                self.position = self._newest + 1
        elif self._is_from_start:
            self.position = self.oldest - 1
            try:
                return self.read(count)
            except errors.Gone:  # overwritten while it was read: start one page later
                self.position = min(self.position + DECISIONS_PAGE.value, self._newest)
        return self.read(count)

    def read(self, count: int) -> Sequence[Entry]:
        """Return at most `count` further entries: fewer where the log ends. Raises Gone and other StoreErrors."""
        entries = self._read_backward(count) if self._is_backward else self._read(self.position + 1, count)
        if entries:
            self.position = entries[-1].position
        return entries

    def _read(self, first: int, count: int) -> Sequence[Entry]:
        entries, self.oldest = self._store.entries(first, count)
        return entries

    def _read_backward(self, count: int) -> Sequence[Entry]:
        """Return the entries before `position`, the newest first. What is overwritten meanwhile is left out."""
        last = self.position - 1
        while (first := max(last + 1 - count, self.oldest)) <= last:
            try:
                return self._read(first, last + 1 - first)[::-1]
            except errors.Gone:
                self.oldest = self._oldest_of(int(self._store.state().position))
        return ()

    def _oldest_of(self, newest: int) -> int:
        return max(1, newest + 2 - self._capacity)


_ALL: Final = frozenset(range(len(KINDS)))


def _parse_order(given: Mapping[str, str]) -> Order:
    """Return the order of a page. Raises 422."""
    order = given.get("order", "oldest")
    if order not in _ORDERS:
        raise invalid("order", "field_invalid", f"is {order[:40]!r}", " or ".join(_ORDERS))
    return cast(Order, order)


def _parse_kinds(given: Mapping[str, str]) -> Collection[int]:
    """Return the kinds of entries that a page may have, as numbers in KINDS. Raises 422."""
    if "kind" not in given:
        return _ALL
    kinds = given["kind"].split(",")
    for kind in kinds:
        if kind not in _KINDS_ASKED:
            expected = f"one of {', '.join(KINDS[1:])}, or several with commas between them"
            raise invalid("kind", "field_invalid", f"has {kind[:40]!r}", expected)
    return frozenset(KINDS.index(kind) for kind in kinds if kind in KINDS)


def _entry_view(entry: Entry, created_at: str, now_ns: int, epoch: int) -> LogEntry:
    kind = KINDS[entry.kind]
    decided = decided_of(entry) if kind in ("decision", "delete", "lost", "update") else None
    decision = kind == "decision"
    return LogEntry(
        entry.position,
        kind,
        age_seconds(entry.time_ns, now_ns),
        created_at,
        epoch,
        _state_view(entry.before),
        _state_view(entry.after),
        None if entry.row == NO_ROW else entry.row,
        entry.after.accepted + entry.after.rejected if decision else None,
        decided.memory_id != 0 if decision and decided else None,
        decided.moral if decided and kind != "lost" else None,
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
