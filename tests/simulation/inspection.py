"""The inspection: after each step the whole block is compared with the history.

Committed data must be intact to the last bit wherever actors are stopped: an actor that is stopped or died inside a
transition has changed nothing that counts. So the whole block is checked each time, not only what was just written.
"""

from typing import Any

from core.reference.log_replay import Scalars
from core.regime import Regime
from shm._native import ffi
from shm.errors import Corrupt, Gone, StoreError, Unknown
from shm.layout import KINDS, NO_ROW, seal
from testing.block_fixture import Formed
from tests.simulation.actor import Actor
from tests.simulation.faults import Faults
from tests.simulation.history import History, Pending, check, check_equal
from tests.simulation.player import Seen


class Inspection:
    """Inspects one block. `look` is called after every step, with the actor that moved."""

    def __init__(self, formed: Formed, history: History, faults: Faults) -> None:
        self.formed = formed
        self.history = history
        self.faults = faults
        self.ticket = 0  # newest that was given

    def look(self, actor: Actor, made: list[int]) -> None:
        """Follow the log and look at everything. `made` gets the positions that the actor's operation entered."""
        self._epoch(actor)
        commit = self.formed.block.position
        while self.history.newest < commit:
            self.history.enter(self.formed.entry(self.history.newest + 1), actor, made)
            made.append(self.history.newest)
        self.faults.drop_replaced_levels(commit)
        self.faults.drop_replaced_levels(commit)
        try:
            if self.faults.is_corrupt:
                self._corrupt()
            else:
                self._state(commit)
            self._tallies()
            if not self.faults.is_state_corrupt:
                self._memories()
        except StoreError as error:
            check(f"what is committed can be read: {error!r}", False)
        self._command(actor)

    def _epoch(self, actor: Actor) -> None:
        """Check that only a controller that has no epoch yet takes one, and that it is the next."""
        lock, vitals, epoch = self.formed.block.region("lock"), self.formed.block.region("vitals"), self.history.epoch
        check(f"the words of the epoch are sealed: {lock.epoch:#x}", not self.formed.block.is_epoch_damaged)
        found = self.formed.block.epoch
        if found != epoch:
            assert actor.operation is not None
            check_equal("an epoch after another", epoch + 1, found)
            check(f"who takes epoch {found}: {actor.operation}", actor.operation.name in ("take_over", "round"))
            check_equal(f"{actor.name}'s epoch before it takes {found}", 0, actor.epoch)
            self.history.epoch = actor.epoch = found
        check("the vitals lead to no epoch that was given", vitals.epoch in (lock.epoch, seal(found + 1)))

    def _state(self, commit: int) -> None:
        state, _ = self.formed.store.levels()
        scalars = Scalars.of(state.scalars)
        levels = self.formed.store.level_bytes()
        seen = Seen(commit, scalars, levels, int(state.receipts), int(state.time_ns))
        check_equal("the committed state", self.history.now.seen, seen)
        check_equal("the settings in force", self.history.model.settings, Regime.of_record(state.settings))
        check_equal("the newest command", self.history.commands, int(state.ticket))

    def _corrupt(self) -> None:
        """Check that damaged data is refused."""
        read = self.formed.store.state if self.faults.is_state_corrupt else self.formed.store.levels
        try:
            read()
        except Corrupt:
            return
        check("the damage is noticed", False)

    def _tallies(self) -> None:
        model = self.history.model
        check_equal("tallies", (model.accepted, model.rejected, model.position), self.formed.store.tallies())
        for row, counts in self.history.tallies.items():
            cells = [cell for cell in self.formed.block.region("rows", row).tally if cell.position <= model.position]
            newest = max(cells, key=lambda cell: int(cell.position))
            check_equal(f"the tally of row {row}", counts, (int(newest.accepted), int(newest.rejected)))

    def _memories(self) -> None:
        store, layout = self.formed.store, self.formed.block.layout
        slots = range(layout.slots)
        check_equal("sound slots", [(True, 0)] * len(slots), [store.check_slot(slot) for slot in slots])
        newest, live = self.history.model.newest_id, set(self.history.now.live)
        for memory_id in sorted(live.union(range(max(1, newest - layout.capacity), newest + 2))):
            found: Any
            try:
                found = store.memory(memory_id)
            except (Gone, Unknown) as error:
                found = type(error)
            expected: Any = Unknown if memory_id > newest else Gone
            check_equal(
                f"memory {memory_id}", self.history.memories[memory_id] if memory_id in live else expected, found
            )
        for slot in slots:
            freed_at = int(self.formed.block.region("slots", slot).mark) % 2**48
            moment = self.history.moments.get(freed_at // 2) if freed_at % 2 else None
            if moment and moment.kind == "delete":
                self._erased(slot)

    def _erased(self, slot: int) -> None:
        """Check that the bytes of a deleted memory are erased, unless the actor that deletes it is stopped or dead, or
        another one is writing the next memory there: the intent record says so.
        """
        lock = self.formed.block.region("lock")
        if lock.intent_erase == slot + 1 or self.formed.store.state().spare == slot:
            return
        for region in self.formed.block.layout.regions():
            if region.name in ("vectors", "shadow", "payloads"):
                at = region.offset + slot * region.stride
                left = self.formed.block.memory[at : at + region.stride]
                check(f"{region.name} of slot {slot}, whose memory was deleted, are erased", not any(left))

    def _command(self, actor: Actor) -> None:
        """Check that only an allowed operation changed the command slot: post, withdraw, or apply (`History.enter`)."""
        record, before = self.formed.block.region("command"), self.history.pending
        found = None
        if record.ticket > self.history.commands and record.ticket != record.withdrawn:
            kind = KINDS[record.kind]
            regime = Regime.of_record(ffi.addressof(record, "settings")) if kind == "configure" else None
            found = Pending(int(record.ticket), kind, regime, int(record.configured))
        if found == before:
            return
        operation = actor.operation
        assert operation is not None
        if found is None:
            assert before is not None
            check_equal(f"who took back {before}", ("withdraw", (before.ticket,)), tuple(operation))
        else:
            check_equal("the command that was pending before another", None, before)
            check_equal("what was posted", ("post", found[1:]), (operation.name, operation.arguments[:3]))
            check(f"ticket {found.ticket} was never given before", found.ticket > self.ticket)
            self.ticket = found.ticket
        self.history.pending = found

    def look_at_rows(self, actors: list[Actor]) -> None:
        """Check that each row belongs to the actor that claimed it."""
        for actor in actors:
            releasing = actor.operation is not None and actor.operation.name == "release"
            if actor.row != NO_ROW and not releasing:
                owner = int(self.formed.block.region("rows", actor.row).pid)
                check_equal(f"the owner of {actor.name}'s row {actor.row}", actor.pid, owner)
