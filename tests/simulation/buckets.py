"""Checks token buckets: what every client has taken and returned, by the words of the two tables.

A bucket is one word that is changed without a lock, so the block does not show which process changed it. But only one
actor moves at a time, so every difference after a step is its work. For each operation under way, all places at which
it may be are tracked by the rules of taking and returning (`_Course.moves`). A step must lead from one of them to the
table as it is, and an answer must belong to one of them.

The rules allow for concurrent users of a table. A client without a place may evict another; it clears the debt before
it claims the place, and alone it evicts the one that is due first. A client that finds its place claimed by another
after taking returns the tokens. Several processes that meet a new client may each give it a place: at most one per
worker.

Each step checks the eight shared places; from time to time the rest of the tables is checked to be untouched.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from shm._native import ffi
from shm.bucket import KEYS, PEERS
from shm.layout import BUCKET_WAYS
from testing.block_fixture import Formed
from tests.simulation.accounts import ACCOUNTS, SET, Account
from tests.simulation.history import WrongError, check, check_equal

_NAMES: Final = {KEYS: "keys", PEERS: "peers"}
_BUCKET: Final = struct.Struct("<Qq")
_LATER_NS: Final = 60 * 10**9  # by which a debt may look longer than its bucket, before it counts as damaged
assert _BUCKET.size == ffi.sizeof("struct mlsdm_bucket")

Places = tuple[tuple[int, int], ...]  # (owner, due_ns) of each place of the set


class _Stand(NamedTuple):
    """Where an operation may be: looking for its place, or at `place` with its answer or without."""

    pc: str  # looking, found, taken, done
    place: int = -1
    answer: int | None = None


class _Course:
    """One operation on a bucket, under way. `now_ns` is None when it gives back."""

    def __init__(self, account: Account, count: int, now_ns: int | None, places: Places) -> None:
        self.account = account
        self.cost = count * account.interval_ns
        self.now_ns = now_ns
        self.stands = {_Stand("looking")}
        self.alone = True  # nobody else has changed the places since it began
        self.absent = False  # there was a moment at which none of them was its own, or more than one
        self.first_due = min(range(BUCKET_WAYS), key=lambda at: places[at][1])
        self.see(places)

    def see(self, places: Places) -> None:
        """Look at the places as they are between two steps."""
        self.absent |= [owner for owner, _ in places].count(self.account.owner) != 1

    def follow(self, before: Places, after: Places) -> None:
        """Keep the stands that a step from `before` to `after` may have led to."""
        changed = [at for at in range(BUCKET_WAYS) if before[at] != after[at]]
        reached = {(before, stand) for stand in self.stands}
        new = list(reached)
        while new:
            more = {move for at in new for move in self.moves(*at, changed)} - reached
            reached |= more
            new = list(more)
        self.stands = {stand for places, stand in reached if places == after}
        self.see(after)

    def moves(self, places: Places, stand: _Stand, changed: list[int]) -> Iterator[tuple[Places, _Stand]]:
        """Yield what may come next, one word at a time. Who strikes out changes a place, and no name comes back: so it
        was one of those that were `changed` in this step, and all others need not be tried.
        """
        now_ns, mine = self.now_ns, self.account.owner
        if stand.pc == "looking":
            yield from ((places, _Stand("found", at)) for at, (owner, _) in enumerate(places) if owner == mine)
            if self.absent and now_ns is None:
                yield places, _Stand("done")
            elif self.absent and now_ns is not None:
                yield from self._strike_out(places, now_ns, changed)
            return
        owner, due_ns = places[stand.place]
        if stand.pc == "found" and now_ns is None:
            yield _with(places, stand.place, owner, due_ns - self.cost), _Stand("done")
        elif stand.pc == "found" and now_ns is not None:
            room = self.account.burst * self.account.interval_ns
            debt = due_ns - now_ns if 0 < due_ns - now_ns <= room + _LATER_NS else 0
            full = debt + self.cost
            if full > room:
                yield places, _Stand("done", -1, room - full)
            else:
                yield _with(places, stand.place, owner, now_ns + full), _Stand("taken", stand.place, full)
        elif stand.pc == "taken":
            if owner != mine:
                places = _with(places, stand.place, owner, due_ns - self.cost)
            yield places, _Stand("done", -1, stand.answer)

    def _strike_out(self, places: Places, now_ns: int, changed: list[int]) -> Iterator[tuple[Places, _Stand]]:
        for at in changed:
            owner, due_ns = places[at]
            if self.alone and at != self.first_due:
                continue
            if owner not in (0, self.account.owner):
                yield _with(places, at, 0, due_ns), _Stand("looking")
            if due_ns > now_ns and (owner == 0 or not self.alone):
                yield _with(places, at, owner, now_ns), _Stand("looking")
            if owner == 0 and (due_ns <= now_ns or not self.alone):
                yield _with(places, at, self.account.owner, due_ns), _Stand("found", at)


class Buckets:
    """Both tables. `owners_max` is how many places one account may have: as many as there are workers."""

    def __init__(self, formed: Formed, owners_max: int) -> None:
        self._formed = formed
        self._owners_max = owners_max
        self._attempts: dict[str, _Course] = {}
        self._places = {table: self._read(table) for table in _NAMES}

    def _read(self, table: int) -> Places:
        offset, _ = self._formed.region_bytes(_NAMES[table])
        at, size = offset + SET * BUCKET_WAYS * _BUCKET.size, BUCKET_WAYS * _BUCKET.size
        return tuple(_BUCKET.iter_unpack(self._formed.block.memory[at : at + size]))

    def begin(self, name: str, account: int, count: int, now_ns: int | None) -> None:
        """An actor is about to take tokens, or to give some back when there is no time."""
        whose = ACCOUNTS[account]
        self._attempts[name] = _Course(whose, count, now_ns, self._places[whose.table])

    def look(self, name: str, what: str) -> None:
        """Explain how the tables look after a step of an actor. Raises WrongError."""
        mine = self._attempts.get(name)
        for table, before in self._places.items():
            after = self._places[table] = self._read(table)
            if mine and mine.account.table == table:
                mine.follow(before, after)
                check(f"{what}: which leads from {before} to {after}", mine.stands)
            else:
                check_equal(f"{what}: which has no business with the places", before, after)
            owners = [owner for owner, _ in after if owner]
            if after != before:
                check(f"{what}: places of one account in {after}", self._crowd(owners) <= self._owners_max)
                for trace in self._attempts.values():
                    if trace is not mine and trace.account.table == table:
                        trace.alone = False
                        trace.see(after)

    @staticmethod
    def _crowd(owners: list[int]) -> int:
        return max(map(owners.count, owners), default=0)

    def look_at_the_rest(self) -> None:
        """Nothing else was ever written into the tables. Raises WrongError."""
        for table, name in _NAMES.items():
            offset, size = self._formed.region_bytes(name)
            rest = self._formed.block.memory[offset : offset + size]
            at, length = SET * BUCKET_WAYS * _BUCKET.size, BUCKET_WAYS * _BUCKET.size
            check(f"the other places of {name} are untouched", not any(rest[:at]) and not any(rest[at + length :]))
            check_equal(
                f"the places of {name}", self._places[table], tuple(_BUCKET.iter_unpack(rest[at : at + length]))
            )

    def judge(self, name: str, what: str, answer: int | None) -> None:
        """Judge what an operation answered. Raises WrongError."""
        trace = self._attempts.pop(name)
        answers = [stand.answer for stand in trace.stands if stand.pc == "done"]
        if answer not in answers:
            raise WrongError(f"{what}: which can only be one of {answers}, as it stands at {trace.stands}")

    def end(self, name: str) -> None:
        """An actor has died: what it did stays."""
        self._attempts.pop(name, None)


def _with(places: Places, at: int, owner: int, due_ns: int) -> Places:
    return (*places[:at], (owner, due_ns), *places[at + 1 :])
