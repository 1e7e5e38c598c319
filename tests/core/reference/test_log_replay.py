"""The native transition equals the reference model to the last bit, over random histories; and the log proves it.

`History` drives a live block and the reference side by side and compares after every operation. The reference is fed
with what was asked of the block, never with what the block answered. Some events come with a key and are sent again:
that is no operation at all. In the end, the log is replayed as a whole with the levels, and from a random entry on
without.
"""

import math
import os
import random
from collections import deque

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.phases import PHASE_NAMES
from core.reference.governor import Governor
from core.reference.log_replay import DivergenceError, Scalars, replay
from core.reference.rhythm import Rhythm
from core.reference.synapse import Synapse
from core.reference.vector import Vector, norm
from core.regime import GovernorSettings, Regime, RhythmSettings, SynapseSettings
from shm._native import ffi
from shm.errors import Gone, NotFinite, Reused, Stopped, TooLong, Unknown
from shm.layout import DECIDED_JUDGED, DECIDED_STORED, DECIDED_VERDICT, FLAG_STOPPED, KINDS, Layout
from shm.records import NO_IDEMPOTENCY_HASH, decided_of, new_idempotency_hash
from shm.store import Decision
from testing.block_fixture import NORM_MAX, REGIME, Formed, Witness, copied

LOG_CAPACITY = 512
RECEIPT_CAPACITY = 4
RATIOS = st.floats(0, 1, allow_subnormal=False)
LAMBDAS = st.one_of(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 0.999_999_999_9]), RATIOS)


@st.composite
def regimes(draw: st.DrawFn) -> Regime:
    """Any settings that a configuration could ask for."""
    low, start, high = sorted(abs(draw(RATIOS)) for _ in range(3))
    return Regime(
        GovernorSettings(
            start, low, high, draw(st.floats(0, 0.5)), draw(st.floats(0.001, 1)), draw(st.one_of(st.just(0.05), RATIOS))
        ),
        RhythmSettings(draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.booleans()), draw(st.booleans())),
        SynapseSettings(
            draw(LAMBDAS),
            draw(LAMBDAS),
            draw(LAMBDAS),
            draw(st.floats(0, 3)),
            draw(st.floats(0, 3)),
            draw(RATIOS),
            draw(RATIOS),
            draw(st.booleans()),
        ),
        draw(st.integers(10_000_000, 3_600_000_000_000)),
    )


class History(RuleBasedStateMachine):
    """One block, the reference beside it, and operations in any order."""

    formed: Formed | None = None

    @initialize(
        dimension=st.sampled_from([2, 7, 16, 384]),
        capacity=st.sampled_from([1, 2, 5, 100]),
        regime=regimes(),
        row=st.booleans(),
    )
    def begin(self, dimension: int, capacity: int, regime: Regime, row: bool) -> None:
        """Form the block. `capacity` is small enough that memories are evicted; without a row nothing is tallied."""
        formed = self.formed = Formed(Layout(dimension, capacity, 16, LOG_CAPACITY, 2, RECEIPT_CAPACITY), regime)
        self.tallied = row
        if not row:
            formed.block.bind(os.getpid(), 0xFFFF_FFFF, formed.wait_ms, NORM_MAX)
        self.regime = regime
        self.governor = Governor.initial(regime.governor)
        self.rhythm = Rhythm.initial(regime.rhythm)
        self.levels = Synapse.initial(dimension)
        self.stopped = False
        self.rejected = 0
        self.position = 1
        self.vectors: dict[int, Vector] = {}
        self.live: list[int] = []  # in the order in which they are evicted
        self.receipts = 0
        self.promised: deque[tuple[int, Decision]] = deque(maxlen=RECEIPT_CAPACITY)

    @rule(
        moral=st.one_of(
            RATIOS, st.sampled_from(["theta", "min", "max", "below theta", "below min", "below max", "sure"])
        ),
        seed=st.integers(0, 2**32 - 1),
        scale=st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-30, 1e-3, 3.0, 1e5]),
        keyed=st.booleans(),
    )
    def admit(self, moral: float | str, seed: int, scale: float, keyed: bool) -> None:
        """Admit any vector with any moral value, the bounds and their neighbours among them; with a new key or none."""
        assert self.formed
        value = self._moral(moral)
        vector = np.random.default_rng(seed).standard_normal(len(self.levels.l1)).astype(np.float32)
        vector *= np.float32(scale / max(norm(vector), 1e-9))
        key = new_idempotency_hash((self.receipts + 1, 0), 0) if keyed else NO_IDEMPOTENCY_HASH
        if self.stopped:
            with pytest.raises(Stopped):
                self.formed.store.admit(self.formed.now(), value, vector, b"", key)
            return
        decision = self.formed.store.admit(self.formed.now(), value, vector, b"", key)
        entry = self.formed.entry(decision.position)

        before = self.governor.theta
        accepted, self.governor = self.governor.decide(value, self.regime.governor)
        phase = self.rhythm.phase
        if accepted:
            self.levels = self.levels.after_run(vector, self.regime.synapse)
            self.vectors[len(self.vectors) + 1] = vector
            evicted = [self.live.pop(0)] if len(self.live) == self.formed.block.layout.capacity else [0]
            self.live.append(len(self.vectors))
        else:
            evicted = [0]
            self.rejected += 1
        if self.regime.rhythm.by_events:
            self._step()
        self._logged(entry, "decision")
        decided = decided_of(entry)
        assert (value, len(self.vectors) if accepted else 0) == (decided.moral, decided.memory_id)
        assert evicted == [decided.victim_id]
        if keyed:
            self.receipts += 1
            self.promised.append((self.receipts, decision))
        assert decided.receipt == (self.receipts if keyed else 0)
        assert decision == Decision(
            self.position,
            len(self.vectors) + self.rejected,
            decided.memory_id,
            entry.time_ns,
            value,
            before,
            self.governor.theta,
            self.governor.ema,
            phase,
            DECIDED_JUDGED | (DECIDED_VERDICT | DECIDED_STORED) * accepted,
            0,
        )
        if accepted:
            memory = self.formed.store.memory(len(self.vectors))
            assert (self.position, value, phase) == (memory.position, memory.moral, memory.phase)
            assert (vector.tobytes(), norm(vector)) == (memory.vector, memory.norm)

    @precondition(lambda self: self.promised)
    @rule(back=st.integers(0, RECEIPT_CAPACITY - 1), other_body=st.booleans(), moral=RATIOS)
    def retry(self, back: int, other_body: bool, moral: float) -> None:
        """Send an event again that was decided: it gets its first answer, or Reused with another body."""
        assert self.formed
        receipt, first = self.promised[-1 - back % len(self.promised)]
        vector, key = np.zeros(len(self.levels.l1), np.float32), new_idempotency_hash((receipt, 0), int(other_body))
        if other_body:
            with pytest.raises(Reused):
                self.formed.store.admit(self.formed.now(), moral, vector, b"", key)
            return
        again = self.formed.store.admit(self.formed.now(), moral, vector, b"", key)
        assert first._replace(repeated=1) == again

    def _moral(self, moral: float | str) -> float:
        if not isinstance(moral, str):
            return moral
        low, high = self.regime.governor.min_threshold, self.regime.governor.max_threshold
        bound = {"theta": self.governor.theta, "min": low, "max": high, "sure": 1.0}[moral.removeprefix("below ")]
        return math.nextafter(bound, -1) if moral.startswith("below") else bound

    def _step(self) -> None:
        if self.rhythm.runs_cascade(self.regime.rhythm):
            self.levels = self.levels.after_run(None, self.regime.synapse)
        self.rhythm = self.rhythm.after_step(self.regime.rhythm)

    def _logged(self, entry: object, kind: str) -> None:
        self.position += 1
        assert (kind, self.position) == (KINDS[entry.kind], entry.position)  # type: ignore[attr-defined]  # cffi

    @rule()
    def tick(self) -> None:
        """Take a step of the rhythm."""
        assert self.formed
        entry = self.formed.store.tick(self.formed.now(), self.formed.epoch)
        self._step()
        self._logged(entry, "tick")

    @rule(regime=regimes())
    def configure(self, regime: Regime) -> None:
        """Put other settings in force."""
        assert self.formed
        entry = self.formed.apply("configure", regime)
        self.regime = regime
        self.governor = self.governor.with_settings(regime.governor)
        self.rhythm = self.rhythm.with_settings(regime.rhythm)
        self._logged(entry, "configure")

    @rule()
    def reset(self) -> None:
        """Return threshold, mean, phase and levels to where they began."""
        assert self.formed
        entry = self.formed.apply("reset")
        self.governor = Governor.initial(self.regime.governor)
        self.rhythm = self.rhythm.reset(self.regime.rhythm)
        self.levels = Synapse.initial(len(self.levels.l1))
        self._logged(entry, "reset")

    @precondition(lambda self: not self.stopped)
    @rule()
    def stop(self) -> None:
        """Stop admissions."""
        assert self.formed
        self._logged(self.formed.apply("stop"), "stop")
        self.stopped = True

    @precondition(lambda self: self.stopped)
    @rule()
    def resume(self) -> None:
        """Admit again."""
        assert self.formed
        self._logged(self.formed.apply("resume"), "resume")
        self.stopped = False

    @rule()
    def succeed(self) -> None:
        """A new controller takes over."""
        assert self.formed
        self.formed.epoch = self.formed.store.begin_epoch(self.formed.now(), REGIME.to_record())
        assert self.position == self.formed.store.state().position

    @rule(back=st.integers(-1, 6))
    def forget(self, back: int) -> None:
        """Delete a recent memory; one that is gone or was never given changes nothing."""
        assert self.formed
        memory_id = len(self.vectors) - back
        given = 1 <= memory_id <= len(self.vectors)
        if memory_id not in self.live:
            with pytest.raises(Gone if given else Unknown):
                self.formed.store.forget(self.formed.now(), max(memory_id, 0))
            return
        entry = self.formed.store.forget(self.formed.now(), memory_id)
        self.live.remove(memory_id)
        self._logged(entry, "delete")
        assert memory_id == decided_of(entry).memory_id

    @rule(bad=st.sampled_from([math.nan, math.inf, -math.inf, 2e6]))
    def refuse(self, bad: float) -> None:
        """A vector that cannot be admitted changes nothing."""
        assert self.formed
        vector = np.full(len(self.levels.l1), bad, np.float32)
        with pytest.raises(TooLong if math.isfinite(bad) else NotFinite):
            self.formed.store.admit(self.formed.now(), 1.0, vector, b"")

    @invariant()
    def same(self) -> None:
        """Every scalar, every level and every setting is the reference's, bit for bit."""
        if self.formed is None:
            return
        state, norms = self.formed.store.levels()
        expected = Scalars(
            self.governor.theta,
            self.governor.ema,
            self.rhythm.phase,
            FLAG_STOPPED * self.stopped,
            self.rhythm.counter,
            len(self.vectors),
            self.rejected,
            self.rhythm.step,
            len(self.vectors),
            len(self.live),
        )
        assert Scalars.of(state.scalars) == expected
        assert (self.position, self.receipts) == (state.position, state.receipts)
        stored = np.frombuffer(self.formed.store.level_bytes(), np.float32).reshape(3, -1)
        dimension = len(self.levels.l1)
        assert b"".join(level.tobytes() for level in self.levels) == stored[:, :dimension].tobytes()
        assert not stored[:, dimension:].any(), "the padding stays zero"
        assert tuple(norm(level) for level in self.levels) == norms
        assert bytes(ffi.buffer(self.regime.to_record())) == bytes(ffi.buffer(ffi.addressof(state, "settings")))
        assert not self.tallied or self.formed.store.tallies() == (len(self.vectors), self.rejected, self.position)

    def teardown(self) -> None:
        """Replay the log: as a whole with the levels, and from any entry on without."""
        if self.formed is None:
            return
        store = self.formed.store
        entries, _ = store.entries(1, LOG_CAPACITY)
        live = Regime.of_record(store.state().settings)
        levels = Synapse.initial(len(self.levels.l1))
        model = replay(entries, live, levels, self.vectors.__getitem__)
        assert model.levels is not None
        assert [level.tobytes() for level in self.levels] == [level.tobytes() for level in model.levels]
        middle = random.randrange(len(entries))
        assert replay(entries[middle:], live).scalars == model.scalars == Scalars.of(store.state().scalars)
        assert sorted(self.live) == self.formed.live_ids()
        self.formed.close()


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=int(os.environ.get("HISTORIES", "60")),
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestReplay:
    def test_a_changed_entry_is_a_divergence(self) -> None:
        """An entry that differs in one bit from what the model says ends the replay with its position."""
        formed = Formed()
        for number in range(0, 1_000_000, 100_000):
            formed.admit(number)
        entries = [copied(entry) for entry in formed.store.entries(1, 100)[0]]
        entries[4].after.theta = math.nextafter(entries[4].after.theta, 1)

        with pytest.raises(DivergenceError, match=r"^position 5: after"):
            replay(entries, Regime.of_record(REGIME.to_record()))
        formed.close()

    def test_a_missing_entry_is_a_divergence(self) -> None:
        """A gap between positions is noticed at once."""
        formed = Formed()
        for number in range(0, 1_000_000, 100_000):
            formed.admit(number)
        entries, _ = formed.store.entries(1, 100)

        with pytest.raises(DivergenceError, match=r"^position 5: position is 6"):
            replay([*entries[:4], *entries[5:]], Regime.of_record(REGIME.to_record()))
        formed.close()

    def test_settings_in_force_are_known_from_what_replaced_them(self) -> None:
        """A log that spans two configurations replays from before, between and after them."""
        formed = Formed()
        for step in (0.05, 0.1, 0.2):
            formed.apply("configure", REGIME._replace(governor=REGIME.governor._replace(adaptation_rate=step)))
            for number in range(950_000, 950_010):
                formed.admit(number)
        state = formed.store.state()
        live, scalars = Regime.of_record(state.settings), Scalars.of(state.scalars)
        entries, _ = formed.store.entries(1, 100)

        assert [scalars] * len(entries) == [replay(entries[first:], live).scalars for first in range(len(entries))]
        formed.close()

    def test_phase_names(self) -> None:
        """The tag of a memory is the phase that held when it was decided, not the one its own step led to."""
        formed = Formed(regime=REGIME._replace(rhythm=RhythmSettings(2, 1, True, True)))
        tags = [PHASE_NAMES[formed.store.memory(formed.accept(number)).phase] for number in range(6)]

        assert tags == ["wake", "wake", "sleep"] * 2
        formed.close()

    def test_witness_catches_a_wrong_level(self) -> None:
        """The witness of the other tests is not blind: a level that is off by one bit fails it."""
        formed = Formed()
        formed.accept()
        witness = Witness(formed)
        witness.check()
        formed.accept(1)
        witness.formed.pool.vectors[1] *= np.float32(1.0001)
        formed.pool.vectors[(950_001) % 512] *= np.float32(1.0001)

        with pytest.raises(AssertionError):
            witness.check()
        formed.close()
