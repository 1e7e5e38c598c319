"""Recall equals brute force: id for id, score bit for bit, on idle stores of all kinds and under concurrent writers."""

import contextlib
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.phases import SLEEP, WAKE, phase_masks
from core.reference.brute_force import Scored, brute_force
from core.reference.vector import LANES, Vector
from core.regime import Regime, RhythmSettings
from core.settings.config import Config
from shm.errors import Corrupt, Gone, NotFinite, TooLong, Unformed, Unknown
from shm.layout import KINDS, Layout, free_since
from shm.recall import Recall, RecallResult
from shm.records import decided_of
from testing.block_fixture import NORM_MAX, REGIME, Formed, begin, end, exit_of, wait_until

Matrix = NDArray[Any]
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
# Every event is accepted, and each is a step of a rhythm that sleeps as often as it wakes.
OPEN = REGIME._replace(
    governor=REGIME.governor._replace(min_threshold=0.0, initial_threshold=0.0, max_threshold=0.0),
    rhythm=RhythmSettings(3, 3, True, True),
)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Print what repeats this run."""
    print(f"rerun with SEED={SEED} pytest {__file__}")
    return SEED


def filled(vectors: Matrix, capacity: int, regime: Regime = OPEN) -> Formed:
    """Return a store that has accepted `vectors`, float32[n, D], in this order."""
    formed = Formed(Layout(vectors.shape[1], capacity, 16, 4096, 2, 16), regime)
    for number, vector in enumerate(vectors):
        formed.store.admit(formed.now(), 0.5, vector, number.to_bytes(8, "little"))
    return formed


def expected(formed: Formed, query: Vector, k: int, mask: int) -> list[Scored]:
    """Return the right answer by definition, from what the store gives back memory by memory."""
    memories = [formed.store.memory(memory_id) for memory_id in formed.live_ids()]
    return brute_force(query, k, mask, [(memory, np.frombuffer(memory.vector, np.float32)) for memory in memories])


def scored(answer: RecallResult) -> list[Scored]:
    """Return an answer as ids and scores."""
    return [Scored(match.id, match.score) for match in answer.matches]


def hold(formed: Formed, query: Vector, k: int, window: tuple[int, int] = (3, 3)) -> RecallResult:
    """Ask, and hold the answer against brute force; returns it."""
    state = formed.store.state()
    mask = window[state.scalars.phase]
    position = int(state.position)
    answer = Recall(formed.block).nearest(query, k, window, payloads=True, vectors=True)

    assert expected(formed, query, k, mask) == scored(answer)
    assert (position, 0, 1) == (answer.as_of, answer.corrupt_id, answer.attempts)
    for match in answer.matches:
        memory = formed.store.memory(match.id)
        assert (memory.moral, memory.time_ns, memory.phase) == (match.moral, match.time_ns, match.phase)
        assert (memory.payload, memory.vector) == (match.payload, match.vector)
    return answer


def vectors_of(kind: str, count: int, dimension: int) -> Matrix:
    """Return float32[count, dimension] of one kind of store."""
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((count, dimension)).astype(np.float32)
    if kind == "duplicates":
        vectors = vectors[rng.integers(0, 5, count)]
    elif kind == "identical":
        vectors[:] = vectors[0]
    elif kind == "zero":
        vectors[rng.random(count) < 0.5] = 0
    elif kind == "all zero":
        vectors[:] = 0
    elif kind == "scales":  # the same direction in any length
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= (10.0 ** rng.uniform(-30, 5.99, (count, 1))).astype(np.float32)
    elif kind == "nearly":  # cosines that differ in the last bits
        vectors = (vectors[:1] + rng.standard_normal((count, dimension)) * 1e-6).astype(np.float32)
    elif kind == "denormal":
        vectors = (vectors * np.float32(1e-42)).astype(np.float32)
    elif kind == "spiky":  # one element dwarfs the rest: the codes of the rest are 0
        vectors[:, 0] = 1e4
    elif kind == "opposite":
        vectors = np.where(rng.random((count, 1)) < 0.5, vectors[:1], -vectors[:1]).astype(np.float32)
    return vectors


KINDS_OF_STORE = (
    "random", "duplicates", "identical", "zero", "all zero", "scales", "nearly", "denormal", "spiky", "opposite",
)  # fmt: skip


class TestQuiet:
    @pytest.mark.parametrize("kind", KINDS_OF_STORE)
    @pytest.mark.parametrize("dimension", [2, 7, 16, 40])
    def test_equals_brute_force(self, kind: str, dimension: int) -> None:
        """On any kind of store, wrapped and with holes, for queries near, far, stored, zero, tiny and long."""
        formed = filled(vectors_of(kind, 260, dimension), 200)
        rng = np.random.default_rng(SEED)
        for memory_id in rng.choice(np.arange(61, 261), 40, replace=False):
            formed.store.forget(formed.now(), int(memory_id))
        stored = vectors_of(kind, 260, dimension)
        fresh = rng.standard_normal(dimension).astype(np.float32)
        for query in (
            fresh,
            stored[100],
            stored[255] * np.float32(0.5),
            np.zeros(dimension, np.float32),
            fresh * np.float32(1e-30),
        ):
            for k in (1, 10, 100):
                hold(formed, query, k)
        formed.close()

    @pytest.mark.parametrize("dimension", [383, 384, 385, 1536, 4096])
    def test_large_dimensions(self, dimension: int) -> None:
        """Also where the codes of the query are coarse, so that their product fits 32 bits."""
        vectors = vectors_of("random", 60, dimension)
        formed = filled(vectors, 50)
        hold(formed, vectors[30], 10)
        hold(formed, np.full(dimension, 1, np.float32), 5)
        formed.close()

    @pytest.mark.parametrize("live", [0, 1, 3, 50, 99])
    def test_fewer_live_than_k(self, live: int) -> None:
        """All live memories are returned, best first, if k is more."""
        formed = filled(vectors_of("random", live, 16), 120)
        answer = hold(formed, np.ones(16, np.float32), 100)

        assert (live, live) == (len(answer.matches), answer.scanned)
        formed.close()

    def test_no_live_memory(self) -> None:
        """A store whose memories were all deleted returns none."""
        formed = filled(vectors_of("random", 30, 16), 20)
        for memory_id in formed.live_ids():
            formed.store.forget(formed.now(), memory_id)

        assert hold(formed, np.ones(16, np.float32), 10).matches == []
        formed.close()

    @pytest.mark.parametrize("capacity", [1, 2, 3, 10])
    def test_tiny_rings_after_every_admission(self, capacity: int) -> None:
        """Brute force is equalled after every single admission over three rounds of the ring."""
        vectors = vectors_of("duplicates", 3 * capacity + 4, 7)
        formed = Formed(Layout(7, capacity, 16, 4096, 2, 16), OPEN)
        for vector in vectors:
            formed.store.admit(formed.now(), 0.5, vector, b"")
            hold(formed, vectors[0], 2)
        formed.close()

    def test_ties_go_to_the_newer(self) -> None:
        """Equal scores come newest first, across the ring's seam too."""
        formed = filled(vectors_of("identical", 130, 16), 100)
        answer = hold(formed, vectors_of("identical", 1, 16)[0], 100)

        assert [match.id for match in answer.matches] == list(range(130, 30, -1))
        formed.close()

    @pytest.mark.parametrize("window", ["any", "wake", "sleep", "current"])
    @pytest.mark.parametrize("tolerance", [0.0, 0.15, 0.8, 1.0])
    def test_phase_windows(self, window: str, tolerance: float) -> None:
        """Awake and asleep, each window lets through what lies within its tolerance, inclusive: 0.9 − 0.1 is 0.8."""
        formed = Formed(Layout(16, 40, 16, 4096, 2, 16), OPEN)
        for number, vector in enumerate(vectors_of("random", 60, 16)):
            formed.store.admit(formed.now(), 0.5, vector, b"")
            if number >= 50:
                hold(formed, vector, 100, phase_masks(window, tolerance))  # type: ignore[arg-type]  # parametrize gives str
        formed.close()

    def test_masks(self) -> None:
        """`any` is both tags, `current` follows the phase, and a tolerance of 0.8 makes every window `any`."""
        wake, sleep, both = 1 << WAKE, 1 << SLEEP, 3

        assert phase_masks("any", 0.0) == (both, both)
        assert phase_masks("wake", 0.15) == (wake, wake)
        assert phase_masks("sleep", 0.15) == (sleep, sleep)
        assert phase_masks("current", 0.15) == (wake, sleep)
        assert phase_masks("current", 0.7999) == (wake, sleep)
        assert (both, both) == phase_masks("current", 0.8) == phase_masks("wake", 0.8) == phase_masks("sleep", 1.0)

    def test_few_candidates_are_scored_in_full(self) -> None:
        """Of 2,000 random memories, a tenth at most is scored in full for k = 10."""
        formed = filled(vectors_of("random", 2000, 64), 2000)
        answer = Recall(formed.block).nearest(vectors_of("random", 1, 64)[0], 10, (3, 3), payloads=False, vectors=False)

        assert answer.scanned == 2000
        assert 10 <= answer.candidates <= 200
        formed.close()

    def test_includes_only_what_was_asked_for(self) -> None:
        """Without payloads and vectors, matches carry None."""
        formed = filled(vectors_of("random", 20, 16), 20)
        answer = Recall(formed.block).nearest(np.ones(16, np.float32), 3, (3, 3), payloads=False, vectors=False)

        assert [(match.payload, match.vector) for match in answer.matches] == [(None, None)] * 3
        formed.close()


class TestRefusal:
    def test_queries_that_are_not_finite_or_too_long_are_refused(self) -> None:
        """NaN and infinity are NotFinite, a norm above the limit is TooLong; the limit itself is not."""
        formed = filled(vectors_of("random", 20, 16), 20)
        recall = Recall(formed.block)
        unit = np.zeros(16, np.float32)
        for value, error in (
            (np.nan, NotFinite),
            (np.inf, NotFinite),
            (-np.inf, NotFinite),
            (NORM_MAX * 1.01, TooLong),
        ):
            unit[3] = value
            with pytest.raises(error):
                recall.nearest(unit, 1, (3, 3), payloads=False, vectors=False)
        unit[3] = NORM_MAX

        assert len(recall.nearest(unit, 1, (3, 3), payloads=False, vectors=False).matches) == 1
        formed.close()

    def test_unformed_before_the_first_epoch(self) -> None:
        """Before the first epoch there is nothing to recall from."""
        formed = Formed()
        formed.block.region("commit").sealed = 0

        with pytest.raises(Unformed):
            Recall(formed.block).nearest(np.ones(16, np.float32), 1, (3, 3), payloads=False, vectors=False)
        formed.close()

    def test_corrupt_state(self) -> None:
        """Nothing is recalled from a state that does not match its checksum."""
        formed = filled(vectors_of("random", 20, 16), 20)
        position = int(formed.store.state().position)
        formed.block.region("states", position & 1).scalars.accepted += 1

        with pytest.raises(Corrupt):
            Recall(formed.block).nearest(np.ones(16, np.float32), 1, (3, 3), payloads=False, vectors=False)
        formed.close()


class TestCorruptMemory:
    @pytest.mark.parametrize("victim", [1, 2])
    @pytest.mark.parametrize("k", [1, 10])
    @pytest.mark.parametrize("part", ["vectors", "payloads", "slots"])
    def test_changed_memory_is_left_out_and_named(self, victim: int, k: int, part: str) -> None:
        """A memory whose bytes changed is never returned: the result is brute force over the others, and it names the
        memory.
        """
        vectors = vectors_of("random", 60, 16)
        formed = filled(vectors, 50)
        best = [match.id for match in expected(formed, vectors[40], 50, 3)]
        offset, _ = formed.region_bytes(part)
        stride = {"vectors": 64, "payloads": 16, "slots": 128}[part]
        at = offset + best[victim - 1] % 51 * stride + {"vectors": 0, "payloads": 0, "slots": 48}[part]
        formed.block.memory[at] ^= 1
        others = expected_without(formed, vectors[40], best[victim - 1])[:k]

        def ask() -> None:
            formed.be(1)
            answer = Recall(formed.block).nearest(vectors[40], k, (3, 3), payloads=False, vectors=False)
            assert others == scored(answer)
            assert answer.corrupt_id == (best[victim - 1] if k >= victim else 0)

        assert exit_of(begin(ask)) == 0
        formed.close()

    @pytest.mark.parametrize("forged", [False, True])
    @pytest.mark.parametrize("where", ["slots", "codes", "both"])
    def test_damaged_mark_does_not_hang_recall(self, where: str, forged: bool) -> None:
        """A flipped bit in a mark hides no memory, forged marks hide one, and recall returns."""
        vectors = vectors_of("random", 60, 16)
        formed = filled(vectors, 50)
        for region in ("slots", "codes") if where == "both" else (where,):
            record: Any = formed.block.region(region, 41 % 51)
            record.mark = free_since(40) if forged else record.mark ^ 1  # the bit that says whether it lives

        def ask() -> None:
            formed.be(1)
            answer = Recall(formed.block).nearest(vectors[40], 1, (3, 3), payloads=False, vectors=False)
            assert (forged and where != "slots") == (41 not in [match.id for match in answer.matches])

        assert exit_of(begin(ask)) == 0
        formed.close()

    def test_any_damage_leaves_brute_force_over_the_sound(self) -> None:
        """However many bytes changed in slots, codes, shadows and vectors, recall returns brute force over the memories
        that are still sound.
        """
        rng = np.random.default_rng(SEED)
        vectors = vectors_of("random", 130, 16)
        strides = {"slots": 128, "codes": 24, "shadow": 16, "vectors": 64}
        for _ in range(40):
            formed = filled(vectors, 120)
            for _ in range(rng.integers(1, 60)):
                part = str(rng.choice(list(strides)))
                at, byte = formed.region_bytes(part)[0], int(rng.integers(0, 121 * strides[part]))
                marks = {"slots": range(112, 120), "codes": range(12, 24)}.get(
                    part, range(0)
                )  # no part of the checksum
                if byte % strides[part] not in marks:
                    formed.block.memory[at + byte] = int(rng.integers(0, 256))
            sound = []
            for memory_id in range(11, 131):
                with contextlib.suppress(Corrupt):
                    memory = formed.store.memory(memory_id)
                    sound.append((memory, np.frombuffer(memory.vector, np.float32)))
            best = brute_force(vectors[100], 10, 3, sound)

            def ask(formed: Formed = formed, best: list[Scored] = best) -> None:
                formed.be(1)
                assert best == scored(
                    Recall(formed.block).nearest(vectors[100], 10, (3, 3), payloads=False, vectors=False)
                )

            assert exit_of(begin(ask)) == 0
            formed.close()


def expected_without(formed: Formed, query: Vector, victim: int) -> list[Scored]:
    """Return brute force over all memories but one."""
    memories = [formed.store.memory(memory_id) for memory_id in range(11, 61) if memory_id != victim]
    return brute_force(query, 100, 3, [(memory, np.frombuffer(memory.vector, np.float32)) for memory in memories])


def scores(query: Vector, matrix: Matrix) -> Matrix:
    """Return the cosines of float32[D] with float32[n, D], in the order of `core.reference.vector` but all at once."""

    def dots(x: Matrix, y: Matrix) -> Matrix:
        products = np.zeros((len(y), -(-y.shape[1] // LANES) * LANES))
        products[:, : y.shape[1]] = x.astype(np.float64) * y.astype(np.float64)
        lanes = np.zeros((len(y), LANES))
        for first in range(0, products.shape[1], LANES):
            lanes += products[:, first : first + LANES]
        a, b, c, d, e, f, g, h = lanes.T
        folded: Matrix = ((a + e) + (c + g)) + ((b + f) + (d + h))
        return folded

    lengths = np.sqrt(dots(query[None], query[None])) * np.sqrt(dots(matrix, matrix))
    quotients: Matrix = np.divide(dots(query[None], matrix), lengths, out=np.zeros(len(matrix)), where=lengths > 0)
    return quotients.clip(-1, 1)


class TestUnderWriters:
    CAPACITY = 300
    RECALLS = 400

    def test_answers_hold_at_their_position(self) -> None:
        """While two processes admit, delete, update, supersede and tick as fast as they can, each answer equals brute
        force over the store as it was immediately after `as_of`, reconstructed from the log.
        """
        formed = Formed(Layout(24, self.CAPACITY, 8, 1_000_000, 3, 16), OPEN)
        writers = [begin(lambda row=row: self._write(formed, row)) for row in (1, 2)]  # type: ignore[misc]
        recall = Recall(formed.block)
        rng = np.random.default_rng(SEED)
        wait_until(lambda: formed.store.tallies()[0] > self.CAPACITY)
        asked = []
        for number in range(self.RECALLS):
            index, k = int(rng.integers(0, 512)), int(rng.choice([1, 10, 100]))
            window = phase_masks(["any", "wake", "current"][number % 3], 0.15)  # type: ignore[arg-type]  # one of them
            asked.append(
                (recall.nearest(formed.pool.vectors[index], k, window, payloads=False, vectors=False), index, k, window)
            )
        for writer in writers:
            end(writer)
        formed.accept()
        self._hold(formed, asked)
        print(f"attempts: {sorted(answer.attempts for answer, *_ in asked)[:: self.RECALLS // 8]}")
        formed.close()

    @staticmethod
    def _write(formed: Formed, row: int) -> None:
        formed.be(row)
        rng = random.Random(SEED + row)
        newest = 1
        while formed.store.state().position < 900_000:
            choice, memory_id = rng.random(), max(1, newest - rng.randrange(TestUnderWriters.CAPACITY))
            with contextlib.suppress(Gone, Unknown):  # or none has been accepted yet
                if choice < 0.8:
                    newest = formed.accept(rng.randrange(50_000))
                elif choice < 0.87:
                    formed.store.forget(formed.now(), memory_id)
                elif choice < 0.92:
                    formed.store.update(formed.now(), memory_id, b"version")
                elif choice < 0.97:
                    moral, vector = formed.pool.event(950_000 + rng.randrange(50_000))
                    formed.store.supersede(formed.now(), memory_id, moral, vector, b"")
                else:
                    formed.store.tick(formed.now(), formed.epoch)

    def _hold(self, formed: Formed, asked: Sequence[tuple[RecallResult, int, int, tuple[int, int]]]) -> None:
        pooled = {index: scores(formed.pool.vectors[index], formed.pool.vectors) for _, index, *_ in asked}
        live: dict[int, tuple[int, int]] = {}  # id → (index in the pool, phase)
        phase, position = WAKE, 0
        for answer, index, k, window in asked:
            while position < answer.as_of:
                page, _ = formed.store.entries(position + 1, min(1000, answer.as_of - position))
                for entry in page:
                    decided = decided_of(entry)
                    if KINDS[entry.kind] == "decision":
                        live[decided.memory_id] = formed.pool.index_of(decided.moral), entry.before.phase
                        live.pop(decided.victim_id, None)
                    elif KINDS[entry.kind] == "delete":
                        del live[decided.memory_id]
                    phase = entry.after.phase
                position += len(page)
            matching = [(memory, at) for memory, (at, tag) in live.items() if window[phase] >> tag & 1]
            best = sorted((-pooled[index][at], -memory) for memory, at in matching)[:k]
            assert [Scored(-memory, -score) for score, memory in best] == scored(answer)

    def test_the_best_are_those_that_are_evicted(self) -> None:
        """While each memory is farther from the query than the one before and the store is full, the best ones leave it
        as fast as a process can admit. Every answer still has the oldest memories, in their order.
        """
        capacity, count = 2_000, 100_000
        always = Regime.of(Config())._replace(governor=OPEN.governor, rhythm=RhythmSettings(3, 3, False, False))
        formed = Formed(Layout(16, capacity, 8, 2 * count, 2, 16), always)
        first = int(formed.store.state().position) + 1

        def write() -> None:
            formed.be(1)
            for number in range(count):
                vector = np.zeros(16, np.float32)
                vector[:2] = 1, 0.1 + 5e-5 * number
                formed.store.admit(formed.now(), 0.5, vector, number.to_bytes(8, "little"))

        writer = begin(write)
        query = np.eye(1, 16, dtype=np.float32)[0]
        recall = Recall(formed.block)
        wait_until(lambda: formed.store.state().scalars.live == capacity)
        answers: list[RecallResult] = []
        while len(answers) < 1_000 or formed.store.state().scalars.accepted < count:
            answers.append(recall.nearest(query, (1, 10, 100)[len(answers) % 3], (3, 3), payloads=True, vectors=True))
        assert exit_of(writer) == 0

        for answer in answers:
            oldest = answer.as_of - first - capacity + 2
            ids = [oldest + place for place in range(len(answer.matches))]
            assert [match.id for match in answer.matches] == ids
            assert [match.payload for match in answer.matches] == [(one - 1).to_bytes(8, "little") for one in ids]
        print(f"attempts: {sorted(answer.attempts for answer in answers)[:: -len(answers) // 8]}")
        formed.close()

    def test_fast_brute_force_equals_the_definition(self) -> None:
        """The comparison of the test above gives the numbers of core.reference.brute_force."""
        formed = filled(vectors_of("scales", 100, 24), 100)
        query = vectors_of("random", 1, 24)[0]
        matrix = formed.block.vectors[1:101]

        assert {match.id: match.score for match in expected(formed, query, 100, 3)} == dict(
            enumerate(scores(query, matrix).tolist(), 1)
        )
        formed.close()
