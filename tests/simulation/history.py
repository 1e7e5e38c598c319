"""The history of the block by the reference model, position by position.

After each step it follows the new log entries with `core.reference.log_replay.Model` and compares each with the actor
that moved and its operation, because nothing else can have written it. For every position that an operation under way
may still refer to, it keeps the state immediately after it; answers are judged by these.

It reads from outside, without the lock, while no actor moves.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from core.phases import PhaseWindow, phase_masks
from core.reference.brute_force import Scored, brute_force
from core.reference.log_replay import DivergenceError, Model
from core.reference.synapse import Synapse
from core.reference.vector import Vector, norm
from core.regime import Regime
from shm._native import ffi
from shm.layout import FLAG_STOPPED, KINDS
from shm.records import decided_of
from shm.store import Decision, Memory
from testing.block_fixture import Formed, decision_of
from tests.simulation.actor import Actor
from tests.simulation.player import PHASE_TOLERANCE, KeyOf, Seen, image_of

# What an operation may enter into the log. "apply" enters what was pending; "round" may, too, and a tick after it.
WRITES: Final = {"admit": "decision", "batch": "decision", "forget": "delete", "tick": "tick"}
BY_BOOT_CLOCK: Final = ("take_over", "apply", "round")  # operations of a real controller
COMMAND_KINDS: Final = ("configure", "reset", "stop", "resume")


class WrongError(Exception):
    """A promise does not hold; the message says which, what was expected and what was found."""


def check_equal(what: str, expected: object, found: object) -> None:
    """Raise WrongError unless `found` equals `expected`."""
    if expected != found:
        raise WrongError(f"{what}: expected {expected}, found {found}")


def check(what: str, fact: object) -> None:
    """Raise WrongError unless `fact` is true."""
    if not fact:
        raise WrongError(what)


class Receipt(NamedTuple):
    """The first answer to an event with a key."""

    ordinal: int
    key: KeyOf
    decision: Decision


class Moment(NamedTuple):
    """What was true immediately after a position."""

    seen: Seen
    live: tuple[int, ...]  # ids, ascending
    image: bytes  # of the log entry
    decision: Decision  # the decision, if the entry is one

    @property
    def kind(self) -> str:
        """What the entry was."""
        return KINDS[ffi.cast("struct mlsdm_entry *", ffi.from_buffer(self.image)).kind]

    @property
    def stopped(self) -> bool:
        """Whether an operator had stopped admissions."""
        return bool(self.seen.scalars.flags & FLAG_STOPPED)


class Pending(NamedTuple):
    """A command that waits for the controller."""

    ticket: int
    kind: str
    regime: Regime | None
    configured: int


class History:
    """The history of one block: `enter` is called with each new entry, in order."""

    def __init__(self, formed: Formed) -> None:
        self.formed = formed
        self.layout = formed.block.layout
        self.moments: dict[int, Moment] = {}
        self.memories: dict[int, Memory] = {}
        self.receipts: dict[int, Receipt] = {}  # by ordinal
        self.tallies: dict[int, tuple[int, int]] = {}  # by row: accepted, rejected
        self.pending: Pending | None = None
        self.commands = 0  # newest ticket that was carried out
        self.epoch = formed.epoch  # newest that was taken
        self._oldest = 1
        entry = formed.entry(1)
        regime = Regime.of_record(formed.store.state().settings)
        levels = Synapse.initial(self.layout.dimension)
        self.model = Model.before(entry, regime, levels).after(entry, regime, self.vector_of)
        self._keep(entry, (), 0)

    @property
    def newest(self) -> int:
        """The position that was followed last."""
        return self.model.position

    @property
    def now(self) -> Moment:
        """The state at the newest position."""
        return self.moments[self.newest]

    def vector_of(self, memory_id: int) -> Vector:
        """Return the vector of a memory, float32[D]."""
        return np.frombuffer(self.memories[memory_id].vector, np.float32)

    def receipt_for(self, key: KeyOf, moment: Moment) -> Receipt | None:
        """Return the receipt of a key that is promised at a moment."""
        given = moment.seen.receipts
        promised = range(given, max(0, given - self.layout.receipt_capacity), -1)
        return next((self.receipts[n] for n in promised if self.receipts[n].key[:2] == key[:2]), None)

    def nearest(self, moment: Moment, query: Vector, k: int, window: PhaseWindow) -> list[Scored]:
        """Return what a recall must find at a moment."""
        mask = phase_masks(window, PHASE_TOLERANCE)[moment.seen.scalars.phase]
        return brute_force(query, k, mask, ((self.memories[i], self.vector_of(i)) for i in moment.live))

    def forget_before(self, position: int) -> None:
        """Forget the moments that no operation under way can refer to, and what belongs only to them."""
        kept = position - self.layout.log_capacity
        if kept <= self._oldest:
            return
        for old in range(self._oldest, kept):
            del self.moments[old]
        self._oldest = kept
        seen = self.moments[kept].seen
        first_id = min(self.moments[kept].live, default=seen.scalars.newest_id)
        first_receipt = seen.receipts - self.layout.receipt_capacity
        self.memories = {i: memory for i, memory in self.memories.items() if i >= first_id}
        self.receipts = {n: receipt for n, receipt in self.receipts.items() if n >= first_receipt}

    # -- following -----------------------------------------------------------------------------------------------------

    def enter(self, entry: Any, actor: Actor, made: list[int]) -> None:
        """Follow an entry that was written while `actor` moved; `made` are earlier positions of the same operation."""
        operation = actor.operation
        assert operation is not None
        before, what = self.now.seen, f"entry {entry.position} by {actor.name} at {operation}"
        kind = self._kind_of(KINDS[entry.kind], actor, made)
        check_equal(f"{what}: kind", kind, KINDS[entry.kind])
        check_equal(f"{what}: row", actor.row, entry.row)
        given_ns = operation.arguments[0]
        if operation.name in BY_BOOT_CLOCK:
            given_ns = self.formed.block.log_time(given_ns)
        check_equal(f"{what}: time", max(before.time_ns, given_ns), entry.time_ns)
        if operation.name in ("tick", "apply", "round"):
            check_equal(f"{what}: epoch of the controller that wrote it", self.epoch, actor.epoch)
        check(f"{what}: is the only one of its operation", not made or operation.name in ("batch", "round"))
        live, receipts, regime = self.now.live, before.receipts, self.model.settings
        decided = decided_of(entry)
        if kind == "decision":
            live, receipts = self._decided(entry, actor, made)
        elif kind == "delete":
            check_equal(f"{what}: id", operation.arguments[1], decided.memory_id)
            check(f"{what}: memory {decided.memory_id} lived", decided.memory_id in live)
            live = tuple(i for i in live if i != decided.memory_id)
        elif self.pending and self.pending.regime and kind == "configure":
            regime = self.pending.regime
        try:
            self.model = self.model.after(entry, regime, self.vector_of)
        except DivergenceError as error:
            raise WrongError(str(error)) from error
        if kind in COMMAND_KINDS:
            assert self.pending is not None
            self.commands, self.pending = self.pending.ticket, None
        self._keep(entry, live, receipts)
        check_equal(f"{what}: live memories", len(live), self.model.live)

    def _kind_of(self, found: str, actor: Actor, made: list[int]) -> str | None:
        """Return which kind an entry of the actor's operation must have; `found` is the one it has."""
        assert actor.operation is not None
        name, commanded = actor.operation.name, self.pending and self.pending.kind
        if name != "round":
            return commanded if name == "apply" else WRITES.get(name)
        before = {self.moments[position].kind for position in made}
        may = [commanded] * (not before & {*COMMAND_KINDS, "tick"}) + ["tick"]
        return found if found in may and found not in before else None

    def _decided(self, entry: Any, actor: Actor, made: list[int]) -> tuple[tuple[int, ...], int]:
        """Follow a decision; returns which memories live after it, and how many receipts were given."""
        assert actor.operation is not None
        what, moment = f"entry {entry.position}", self.now
        decided = decided_of(entry)
        items = items_of(actor.operation.arguments)
        number, receipts = len(made), moment.seen.receipts
        if decided.receipt:
            receipts += 1
            offset, _ = self.formed.region_bytes("receipts")
            places = ffi.cast("struct mlsdm_receipt *", self.formed.block.map.base + offset)
            receipt = places[receipts % (self.layout.receipt_capacity + 1)]
            check_equal(f"{what}: ordinal of its receipt", (receipts, receipts), (decided.receipt, receipt.ordinal))
            key = (receipt.key[0], receipt.key[1], receipt.body)
            number = next((i for i, item in enumerate(items) if item[2] == key), -1)
            check(f"{what}: the key {key} of its receipt is one of {actor.operation}", number >= 0)
            check_equal(f"{what}: earlier receipt of that key", None, self.receipt_for(key, moment))
            check_equal(f"{what}: first answer", decision_of(entry), Decision(*_fields(receipt.decision)))
            self.receipts[receipts] = Receipt(receipts, key, decision_of(entry))
        check(f"{what}: is an item of {actor.operation}", number < len(items))
        event, payload, key_of = items[number]
        check_equal(f"{what}: whether it has a receipt", key_of is not None, decided.receipt != 0)
        moral, vector = self.formed.pool.event(event)
        check_equal(f"{what}: moral value", moral, decided.moral)
        accepted, rejected = self.tallies.get(actor.row, (0, 0))
        self.tallies[actor.row] = accepted + (decided.memory_id != 0), rejected + (decided.memory_id == 0)
        if not decided.memory_id:
            return moment.live, receipts
        self.memories[int(decided.memory_id)] = Memory(
            int(decided.memory_id), int(entry.position), int(entry.time_ns), moral, norm(vector),
            int(entry.before.phase), vector.tobytes(), payload,
        )  # fmt: skip
        victim = moment.live[0] if len(moment.live) == self.layout.capacity else 0
        check_equal(f"{what}: victim", victim, int(decided.victim_id))
        return (*(i for i in moment.live if i != victim), int(decided.memory_id)), receipts

    def _keep(self, entry: Any, live: tuple[int, ...], receipts: int) -> None:
        model = self.model
        assert model.levels is not None
        levels = np.zeros((3, self.layout.vector_stride // 4), np.float32)
        levels[:, : self.layout.dimension] = model.levels
        seen = Seen(model.position, model.scalars, levels.tobytes(), receipts, int(entry.time_ns))
        self.moments[model.position] = Moment(seen, live, image_of(entry), decision_of(entry))


def items_of(arguments: tuple[Any, ...]) -> list[tuple[int, bytes, KeyOf | None]]:
    """Return (event number, payload, key) of each event of an admission or a batch, by its arguments."""
    _, numbers, payloads, key = arguments
    if not isinstance(numbers, list):
        numbers, payloads = [numbers], [payloads]
    keys = [key and (key[0], key[1] + i, key[2]) for i in range(len(numbers))]
    return list(zip(numbers, payloads, keys, strict=True))


def _fields(record: Any) -> list[Any]:
    return [getattr(record, name) for name in Decision._fields]
