"""Receipts: an event that was decided is never decided again while its receipt is kept.

`Ledger` drives a block and a plain dictionary side by side: few keys, so that most events are repeats; a promise of a
few receipts, so that it ends all the time and the ring wraps over and over; batches that begin with what was decided
before. `TestRace` sends the same events from several processes at once.
"""

import mmap
import os
import random
import struct
from collections import OrderedDict
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shm._native import ffi
from shm.errors import Gone, NotFinite, Reused, Stopped, TooLong, Unknown
from shm.layout import KINDS, NO_ROW, STATUSES, Layout
from shm.records import IdempotencyHash, decided_of, new_idempotency_hash
from shm.store import Decision
from testing.block_fixture import Formed, Witness, begin, decision_of, exit_of, wait_until
from tests.shm.conftest import Form

SEED: Final = int(os.environ.get("SEED") or random.randrange(2**32))
RACES: Final = int(os.environ.get("RACES", "1"))
LAST: Final = 2**64 - 1
DECISION: Final = struct.Struct("<3Qq4d2HI")

Name = tuple[int, int]  # the words of a key
NAMES = st.tuples(st.sampled_from([0, 1, 5, LAST]), st.sampled_from([0, 1, 2, 3, 8, LAST - 2, LAST]))
BODIES = st.sampled_from([0, 0, 0, 1])
MORALS = st.integers(0, 1_000_000)


def nth(name: Name, number: int) -> Name:
    """Return the words of item `number` of a batch."""
    return name[0], (name[1] + number) % 2**64


class Ledger(RuleBasedStateMachine):
    """One block, and the dictionary that says what it must answer: name → (body, first decision), oldest first."""

    formed: Formed | None = None

    @initialize(
        capacity=st.sampled_from([1, 2, 3, 8, 13]), by_events=st.booleans(), row=st.sampled_from([0, 1, NO_ROW])
    )
    def begin(self, capacity: int, by_events: bool, row: int) -> None:
        """Form the block; with `by_events` the phase changes at every decision."""
        self.formed = Formed(Layout(2, 5, 8, 4096, 2, capacity))
        regime = self.formed.regime
        self.formed.apply("configure", regime._replace(rhythm=regime.rhythm._replace(by_events=by_events)))
        self.row = row
        self.formed.be(row)
        self.capacity = capacity
        self.promised: OrderedDict[Name, tuple[int, Decision]] = OrderedDict()
        self.given: list[int] = []
        self.stopped = False

    def expected(self, name: Name, body: int) -> Decision | type[Exception] | None:
        """Return the first decision, the error, or None if the event must be decided now."""
        if name in self.promised:
            known, first = self.promised[name]
            return first._replace(repeated=1) if known == body else Reused
        return Stopped if self.stopped else None

    def keep(self, name: Name, body: int, decision: Decision) -> None:
        """Remember a decision that was made now."""
        self.promised[name] = body, decision
        self.given.append(decision.position)
        if len(self.promised) > self.capacity:
            self.promised.popitem(last=False)

    def state(self) -> bytes:
        """Return the committed state and what the rows count, as bytes."""
        assert self.formed
        return bytes(ffi.buffer(self.formed.store.state())) + repr(self.formed.store.tallies()).encode()

    @rule(name=NAMES, body=BODIES, moral=MORALS)
    def admit(self, name: Name, body: int, moral: int) -> None:
        """Admit one event with a key. An event that is answered from a receipt or refused changes nothing."""
        assert self.formed
        expected, before = self.expected(name, body), self.state()
        key = new_idempotency_hash(name, body)
        if isinstance(expected, type):
            with pytest.raises(expected):
                self.formed.decide(moral, b"x", key)
        elif expected:
            assert self.formed.decide(moral, b"x", key) == expected
        else:
            decision = self.formed.decide(moral, b"x", key)
            assert decision == decision_of(self.formed.entry(decision.position))
            self.keep(name, body, decision)
            return
        assert before == self.state()

    @rule(moral=MORALS)
    def admit_without(self, moral: int) -> None:
        """An event without a key leaves no receipt."""
        assert self.formed
        if self.stopped:
            with pytest.raises(Stopped):
                self.formed.decide(moral)
        else:
            assert self.formed.decide(moral).repeated == 0

    @rule(name=NAMES, body=BODIES, morals=st.lists(MORALS, min_size=1, max_size=10))
    def admit_batch(self, name: Name, body: int, morals: list[int]) -> None:
        """Admit a batch: its items behave like single events; the first that is refused ends it."""
        assert self.formed
        events = [self.formed.pool.event(moral) for moral in morals]
        newest = int(self.formed.store.state().position)
        decisions, status = self.formed.store.admit_batch(
            self.formed.now(),
            np.array([moral for moral, _ in events]),
            np.stack([vector for _, vector in events]),
            None,
            new_idempotency_hash(name, body),
        )
        for number, decision in enumerate(map(Decision._make, decisions)):
            expected = self.expected(nth(name, number), body)
            if expected is None:
                newest += 1
                assert (newest, 0) == (decision.position, decision.repeated)
                assert decision == decision_of(self.formed.entry(newest))
                self.keep(nth(name, number), body, decision)
            else:
                assert decision == expected
        assert newest == self.formed.store.state().position
        if len(decisions) < len(morals):
            refused = self.expected(nth(name, len(decisions)), body)
            assert isinstance(refused, type)
            assert refused.__name__.lower() == STATUSES[status]
        else:
            assert status == 0

    @rule(name=NAMES, body=BODIES, bad=st.sampled_from([np.nan, np.inf, 1e30]))
    def refuse(self, name: Name, body: int, bad: float) -> None:
        """A vector that cannot be admitted leaves no receipt and searches none."""
        assert self.formed
        before = self.state()
        with pytest.raises(TooLong if np.isfinite(bad) else NotFinite):
            self.formed.store.admit(
                self.formed.now(), 1.0, np.full(2, bad, np.float32), b"", new_idempotency_hash(name, body)
            )
        assert before == self.state()

    @precondition(lambda self: not self.stopped)
    @rule()
    def stop(self) -> None:
        """Stop admissions; repeated events are still answered."""
        assert self.formed
        self.formed.apply("stop")
        self.stopped = True

    @precondition(lambda self: self.stopped)
    @rule()
    def resume(self) -> None:
        """Admit again."""
        assert self.formed
        self.formed.apply("resume")
        self.stopped = False

    @rule(what=st.sampled_from(["tick", "reset", "epoch", "forget"]))
    def something_else(self, what: str) -> None:
        """Other transitions remove no receipt; a memory may go, its receipt stays."""
        assert self.formed
        formed = self.formed
        if what == "tick":
            formed.store.tick(formed.now(), formed.epoch)
        elif what == "reset":
            formed.apply("reset")
        elif what == "epoch":
            formed.epoch = formed.store.begin_epoch(formed.now(), formed.regime.to_record())
        else:
            newest = int(formed.store.state().scalars.newest_id)
            try:
                formed.store.forget(formed.now(), max(newest - 1, 0))
            except (Gone, Unknown):
                return

    @invariant()
    def all_promises_are_kept(self) -> None:
        """Every kept receipt is found, with its first decision, and finding it changes nothing."""
        if self.formed is None:
            return
        before = self.state()
        for name, (body, first) in self.promised.items():
            assert first._replace(repeated=1) == self.formed.decide(0, key=new_idempotency_hash(name, body))
        assert before == self.state()
        assert len(self.given) == self.formed.store.state().receipts

    def teardown(self) -> None:
        """The log names the receipts 1 … n, each with its decision."""
        if self.formed is None:
            return
        assert self.given == receipted(self.formed)
        self.formed.close()


def receipted(formed: Formed) -> list[int]:
    """Return the positions of the decisions that gave receipts; asserts that these are numbered 1 … n."""
    position = int(formed.store.state().position)
    entries, _ = formed.store.entries(1, position)
    found = []
    for entry in entries:
        decided = decided_of(entry)
        if entry.kind == KINDS.index("decision") and decided.receipt:
            found.append(int(entry.position))
            assert len(found) == decided.receipt
    return found


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=int(os.environ.get("HISTORIES", "40")),
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestWindow:
    @pytest.mark.parametrize("capacity", [1, 7])
    def test_newest_capacity_receipts_are_kept(self, form: Form, capacity: int) -> None:
        """The newest `capacity` of any number of events with keys are answered again, the one before is not."""
        formed = form(Layout(2, 5, 0, 4096, 1, capacity))
        given = [formed.decide(number, key=new_idempotency_hash((number, 0), 0)) for number in range(5 * capacity + 3)]
        for number in range(4 * capacity + 3, 5 * capacity + 3):
            assert given[number]._replace(repeated=1) == formed.decide(0, key=new_idempotency_hash((number, 0), 0))

        assert formed.decide(0, key=new_idempotency_hash((4 * capacity + 2, 0), 0)).repeated == 0

    def test_key_that_left_the_window_starts_anew(self, form: Form) -> None:
        """A key that has left the window counts as new, and its second decision is then the first."""
        formed = form(Layout(2, 5, 0, 4096, 1, 2))
        first = formed.decide(1, key=new_idempotency_hash((1, 0), 0))
        for number in (2, 3):
            formed.decide(number, key=new_idempotency_hash((number, 0), 0))
        second = formed.decide(2, key=new_idempotency_hash((1, 0), 1))

        assert (0, first.sequence + 3) == (second.repeated, second.sequence)
        assert second._replace(repeated=1) == formed.decide(3, key=new_idempotency_hash((1, 0), 1))
        Witness(formed).check()

    def test_rejection_is_repeated(self, formed: Formed) -> None:
        """A rejected event stays rejected, even if the threshold would accept it by now."""
        for number in range(10):
            formed.accept(number)  # the threshold rises
        first = formed.decide(600_000, key=new_idempotency_hash((1, 0), 0))
        formed.apply("reset")

        assert (first.memory_id, first.moral) == (0, 0.6)
        assert first._replace(repeated=1) == formed.decide(600_000, key=new_idempotency_hash((1, 0), 0))
        assert formed.decide(600_000, key=new_idempotency_hash((2, 0), 0)).memory_id

    def test_batch_whose_words_wrap(self, formed: Formed) -> None:
        """The items of a batch have consecutive words, and 0 follows 2^64 − 1."""
        moral, vector = formed.pool.event(950_000)
        decisions, _ = formed.store.admit_batch(
            formed.now(), np.full(3, moral), np.stack([vector] * 3), None, new_idempotency_hash((9, LAST - 1), 4)
        )

        for word, decision in zip((LAST - 1, LAST, 0), map(Decision._make, decisions), strict=True):
            assert decision._replace(repeated=1) == formed.decide(0, key=new_idempotency_hash((9, word), 4))

    def test_batch_longer_than_the_window(self, form: Form) -> None:
        """Each item is decided once; a retry of the batch is decided again, because the receipts of its beginning are
        gone.
        """
        formed = form(Layout(2, 5, 0, 4096, 1, 4))
        moral, vector = formed.pool.event(950_000)
        events = np.full(10, moral), np.stack([vector] * 10), None, new_idempotency_hash((9, 0), 4)
        first, _ = formed.store.admit_batch(formed.now(), *events)
        again, _ = formed.store.admit_batch(formed.now(), *events)

        assert [repeated for *_, repeated in first + again] == [0] * 20
        assert [Decision._make(decision).sequence for decision in first + again] == list(range(1, 21))

    def test_repeat_stores_nothing(self, formed: Formed) -> None:
        """A repeated event leaves slots, payloads and tallies as they are."""
        first = formed.decide(950_000, b"once", new_idempotency_hash((1, 1), 1))
        again = formed.decide(950_001, b"twice", new_idempotency_hash((1, 1), 1))

        assert first._replace(repeated=1) == again
        assert (formed.live_ids(), formed.store.memory(1).payload) == ([1], b"once")
        assert formed.store.tallies()[:2] == (1, 0)


class TestRace:
    """Several processes send the same keyed events, each in an order of its own, one by one and in batches."""

    PROCESSES: Final = 4
    EVENTS: Final = 1200
    BATCH: Final = 6

    def send(self, formed: Formed, row: int, seed: int, answers: mmap.mmap) -> None:
        """Send everything; keep the answers."""
        formed.be(row)
        rng = random.Random(seed)
        firsts = list(range(0, self.EVENTS, self.BATCH))
        rng.shuffle(firsts)
        firsts.sort(key=lambda first: first // 200)  # not too far from the others, or nobody ever meets
        for first in firsts:
            numbers = range(first, first + self.BATCH)
            if rng.random() < 0.5:
                events = [formed.pool.event(number * 833 % 1_000_001) for number in numbers]
                morals, vectors = np.array([moral for moral, _ in events]), np.stack([vector for _, vector in events])
                decisions, status = formed.store.admit_batch(formed.now(), morals, vectors, None, self.key(first))
                assert (self.BATCH, 0) == (len(decisions), status)
            else:
                decisions = [formed.decide(number * 833 % 1_000_001, key=self.key(number)) for number in numbers]
            if rng.random() < 0.1:
                formed.decide(rng.randrange(1_000_001))
            for number, decision in zip(numbers, decisions, strict=True):
                DECISION.pack_into(answers, (row * self.EVENTS + number) * DECISION.size, *decision)
            os.sched_yield()  # fewer cores than processes: let the others in between

    def key(self, number: int) -> IdempotencyHash:
        """Return the key of an event: those of a batch differ in the second word only."""
        return new_idempotency_hash((number // self.BATCH, number % self.BATCH), number // self.BATCH)

    @pytest.mark.parametrize("race", range(RACES))
    def test_each_key_is_decided_once(self, form: Form, race: int) -> None:
        """All processes get the same decision of each event; the log has one decision for each key and its receipt,
        numbered without gap.
        """
        print(f"rerun with SEED={SEED}")
        formed = form(Layout(16, 50, 64, 16_384, self.PROCESSES, self.EVENTS))
        answers = mmap.mmap(-1, self.PROCESSES * self.EVENTS * DECISION.size)
        gate = mmap.mmap(-1, 1)

        def work(row: int) -> None:
            wait_until(lambda: gate[0])
            self.send(formed, row, SEED + race * 10 + row, answers)

        children = [begin(lambda row=row: work(row)) for row in range(self.PROCESSES)]  # type: ignore[misc]  # early binding
        gate[0] = 1
        assert [exit_of(child) for child in children] == [0] * self.PROCESSES

        given = [Decision._make(fields) for fields in DECISION.iter_unpack(answers[:])]
        by_event = [given[number :: self.EVENTS] for number in range(self.EVENTS)]
        for number, decisions in enumerate(by_event):
            assert sorted(decision.repeated for decision in decisions) == [0] + [1] * (self.PROCESSES - 1)
            assert len({decision._replace(repeated=0) for decision in decisions}) == 1
            decision = decisions[0]
            assert number * 833 % 1_000_001 / 1e6 == decision.moral
            assert decision._replace(repeated=0) == decision_of(formed.entry(decision.position))
        assert sorted(decisions[0].position for decisions in by_event) == receipted(formed)
        firsts = [sum(not d.repeated for d in given[row * self.EVENTS : (row + 1) * self.EVENTS]) for row in range(4)]
        print(f"decided first by each process: {firsts}")
        Witness(formed).check()
        answers.close()
        gate.close()
