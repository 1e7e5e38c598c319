"""The judge: follows a server's log during a fault and compares everything with it.

A separate process reads the log from its first entry and follows it with the reference model
(`core.reference.log_replay`): every entry must follow from the one before to the last bit, levels included. The moral
value of a decision identifies its event and so its vector (`load.Events`). If the ring overtakes the judge, it says
so, and nothing is proven.

When all clients have stopped, `verdict` compares the clients' answers with the log (none lost, changed, duplicated or
invented), the live state, levels and tallies with the model, and each stored memory with its event.
"""

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Self

import numpy as np

from core.reference.log_replay import DivergenceError, Model, Scalars
from core.reference.synapse import Synapse
from core.regime import Regime
from loadtests.faults.load import DECISION_ROW, ClientRecords, Events, Table
from shm import process
from shm.errors import Gone, StoreError
from shm.layout import KINDS
from shm.records import Entry, decided_of, replaced_settings_of
from shm.store import Store
from testing.live_server import LiveServer

PAGE: Final = 1000  # entries read at a time
LOOK_SECONDS: Final = 0.02  # between two reads of a log without new entries
FINISH_SECONDS: Final = 120.0  # to finish after the load has stopped
SENTENCES_MAX: Final = 5  # per kind; the rest is counted
_DECISION, _CONFIGURE = KINDS.index("decision"), KINDS.index("configure")
_FORK: Final = multiprocessing.get_context("fork")


class Verdict(NamedTuple):
    """The log of a run."""

    decisions: int  # in the log
    kinds: dict[str, int]  # how many entries of each kind
    controllers: int  # that have taken charge
    broken: list[str]


class Judge:
    """Follows the log of one server. To be made before the first event."""

    def __init__(self, server: LiveServer, events: Events) -> None:
        self._block = server.block()
        self._ours, theirs = _FORK.Pipe()
        self._follower = _FORK.Process(
            target=_follow, args=(Store(self._block), events, os.getpid(), theirs), daemon=True
        )
        self._follower.start()
        theirs.close()

    def verdict(self, *records: ClientRecords) -> Verdict:
        """Compare with the answers to the clients of all loads. All writers must have stopped.

        Raises RuntimeError when the follower died.
        """
        self._ours.send(None)
        try:
            if not self._ours.poll(FINISH_SECONDS):
                raise RuntimeError("the judge does not come to an end")
            found, logged = self._ours.recv()
        except EOFError:
            raise RuntimeError("the judge died") from None
        finally:
            self.end()
        verdict = Verdict(*found)
        if not verdict.broken:  # otherwise the log could not be followed
            verdict.broken.extend(disagreements(np.frombuffer(logged, DECISION_ROW), records))
        return verdict

    def end(self) -> None:
        """End it at once, if it still runs."""
        self._follower.kill()
        self._follower.join()
        self._ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def disagreements(logged: Table, records: tuple[ClientRecords, ...]) -> list[str]:
    """Return a sentence for each difference between the decisions of the log and the clients' answers."""
    answered = np.concatenate([one.decided for one in records])
    open_numbers = {number for one in records for number in one.unanswered}
    broken = []
    numbers, times = np.unique(logged["number"], return_counts=True)
    twice = numbers[times > 1]
    if len(twice):
        broken.append(f"{len(twice)} events were decided more than once: {twice[:SENTENCES_MAX].tolist()}")
    repeated = len(answered) - len(np.unique(answered["number"]))
    assert repeated == 0, "a client has two answers for the same event: the load is wrong"
    lost = np.setdiff1d(answered["number"], numbers)
    if len(lost):
        broken.append(f"{len(lost)} acknowledged events are not in the log: {lost[:SENTENCES_MAX].tolist()}")
    invented = [n for n in np.setdiff1d(numbers, answered["number"]).tolist() if n not in open_numbers]
    if invented:
        broken.append(f"{len(invented)} events of the log were acknowledged to nobody: {invented[:SENTENCES_MAX]}")
    if not broken:
        by_number = logged[np.argsort(logged["number"], kind="stable")]
        entries = by_number[np.searchsorted(by_number["number"], answered["number"])] if len(answered) else answered
        order = np.argsort(answered["number"], kind="stable")
        differing = [
            f"event {a['number']} was told {a}, the log says {b}"
            for a, b in zip(answered[order], entries[order], strict=True)
            if a != b
        ]
        broken += differing[:SENTENCES_MAX]
        if len(differing) > SENTENCES_MAX:
            broken.append(f"and {len(differing) - SENTENCES_MAX} more answers differ from the log")
    return broken


def _follow(store: Store, events: Events, parent: int, channel: Connection) -> None:
    """Follow the log until `channel` receives a message; then send the findings and the decisions as DECISION_ROW."""
    process.die_with_parent(parent)
    follower = _Follower(store, events)
    broken: list[str] = []
    try:
        while not channel.poll(0 if follower.caught_up() else LOOK_SECONDS):
            continue
        follower.caught_up()
        broken = follower.disagreements()
    except DivergenceError as error:
        broken = [f"the log does not follow from itself: {error}"]
    except Gone:
        broken = ["the log was overwritten before it was read: nothing is proven (enlarge log_capacity)"]
    except StoreError as error:
        broken = [f"the store cannot be read: {error}"]
    channel.send(((follower.decisions, follower.kinds, store.block.epoch, broken), bytes(follower.logged)))


class _Follower:
    """Follows one log with the reference model."""

    def __init__(self, store: Store, events: Events) -> None:
        self.store = store
        self.events = events
        self.model: Model | None = None
        self.numbers: dict[int, int] = {}  # memory id → event, of those in the window
        self.decisions = 0
        self.kinds: dict[str, int] = {}
        self.logged = bytearray()

    def caught_up(self) -> bool:
        """Follow new entries; return whether there were any. Raises DivergenceError, Gone, Corrupt."""
        state = self.store.state()
        newest, live = int(state.position), Regime.of_record(state.settings)
        first = self.model.position + 1 if self.model else 1
        log: list[Entry] = []
        while first + len(log) <= newest:
            page, _ = self.store.entries(first + len(log), PAGE)
            log += page
        del log[max(0, newest - first + 1) :]  # later entries may have been made under other settings than `live`
        in_force, held = [live], live
        for entry in reversed(log):
            if entry.kind == _CONFIGURE:  # it says which settings it replaced
                held = Regime.of_record(replaced_settings_of(entry))
            in_force.append(held)
        in_force.reverse()
        if self.model is None and log:
            self.model = Model.before(log[0], in_force[0], Synapse.initial(self.events.dimension))
        for entry, after in zip(log, in_force[1:], strict=True):
            self._follow_entry(entry, after)
        return bool(log)

    def _follow_entry(self, entry: Entry, settings: Regime) -> None:
        kind = KINDS[entry.kind]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if entry.kind == _DECISION:
            self._follow_decision(entry)
        assert self.model is not None
        self.model = self.model.after(entry, settings, self._vector)

    def _follow_decision(self, entry: Entry) -> None:
        decided = decided_of(entry)
        self.decisions += 1
        sequence = entry.after.accepted + entry.after.rejected
        if sequence != self.decisions:
            raise DivergenceError(f"position {entry.position}: decision {sequence}, expected {self.decisions}")
        number = self.events.number_of(decided.moral)
        row = (
            number, entry.position, sequence, decided.memory_id, decided.moral,
            entry.before.theta, entry.after.theta, entry.after.ema,
        )  # fmt: skip
        self.logged += np.array(row, DECISION_ROW).tobytes()
        if decided.memory_id:
            self.numbers[decided.memory_id] = number
            self.numbers.pop(decided.memory_id - self.store.block.layout.capacity, None)

    def _vector(self, memory_id: int) -> Any:
        return self.events.vector(self.numbers[memory_id])

    def disagreements(self) -> list[str]:
        """Return a sentence for each difference between the model and the live block."""
        store = self.store
        state, _ = store.levels()
        while self.model is None or state.position > self.model.position:  # the rhythm continues
            self.caught_up()
            state, _ = store.levels()
        model = self.model
        levels = np.frombuffer(store.level_bytes(), np.float32).reshape(3, -1)[:, : self.events.dimension]
        broken = []
        if (state.position, Scalars.of(state.scalars)) != (model.position, model.scalars):
            broken.append(
                f"the state is {Scalars.of(state.scalars)} at {state.position}, a replay of the log gives "
                f"{model.scalars} at {model.position}"
            )
        assert model.levels is not None
        if [level.tobytes() for level in levels] != [level.tobytes() for level in model.levels]:
            broken.append("the synaptic levels are not those that a replay of the log gives")
        accepted, rejected, _ = store.tallies()
        if (accepted, rejected) != (model.accepted, model.rejected):
            broken.append(
                f"the workers' tallies sum up to {accepted} accepted and {rejected} rejected, a replay of the log "
                f"gives {model.accepted} and {model.rejected}"
            )
        broken += [
            f"slot {slot} with memory {memory_id} does not fit its checksum"
            for slot in range(store.block.layout.slots)
            for sound, memory_id in [store.check_slot(slot)]
            if not sound
        ]
        return broken + self._wrong_memories()

    def _wrong_memories(self) -> list[str]:
        live, wrong = 0, []
        for memory_id, number in self.numbers.items():
            try:
                memory = self.store.memory(memory_id)
            except Gone:
                continue  # deleted
            live += 1
            if memory.vector != self.events.vector(number).tobytes() or memory.moral != self.events.moral(number):
                wrong.append(f"memory {memory_id} is not event {number}, to which the log gave its id")
        assert self.model is not None
        if live != self.model.live:
            wrong.append(f"{live} memories can be read, a replay gives {self.model.live}")
        return wrong[:SENTENCES_MAX]
