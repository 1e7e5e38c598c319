"""SIGKILL at any instruction: no deadlock, no corruption, nothing half done, nothing committed lost.

Three kinds of death. At random, many times, in hot loops. Staged: a child takes the mutex, writes garbage over all
that a transition may touch before its commit, and dies. And stepped: one death at each instruction of each kind of
section, which is the proof; the default run takes every twelfth, from a random first one on, and `STRIDE=1` all.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shm._native import lib
from shm.layout import NO_ROW, Layout
from shm.status import Gone
from shm.store import Recall, Store
from tests import tracee
from tests.formed import REGIME, Formed, Witness, begin, copied, end, exit_of, take_mutex, wait_until
from tests.shm.conftest import Form

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
KILLS = int(os.environ.get("KILLS", "120"))
STRIDE = int(os.environ.get("STRIDE", "12"))  # 1 for the whole proof: 14,000 deaths in a minute and a half
ASLEEP = REGIME._replace(rhythm=REGIME.rhythm._replace(wake_duration=1, sleep_duration=50))


def rollbacks(formed: Formed) -> int:
    """Return how many transitions were undone."""
    return int(formed.block.region("lock").rollbacks)


class TestRandom:
    def test_kills_at_random_moments(self, form: Form) -> None:
        """Writers that admit, delete and tick as fast as they can are killed one after the other; after each, the next
        event is admitted and everything that the block says of itself holds.
        """
        print(f"rerun with SEED={SEED} KILLS={KILLS} pytest {__file__}")
        rng = random.Random(SEED)
        formed = form(Layout(64, 30, 64, 262_144, 4))
        witness = Witness(formed)
        lock = formed.block.region("lock")

        def write() -> None:
            formed.be(1)
            while True:
                events = [formed.pool.event(rng.randrange(300_000, 1_000_001)) for _ in range(40)]
                morals, vectors = np.array([moral for moral, _ in events]), np.stack([vector for _, vector in events])
                payloads = [b"x" * (number % 65) for number in range(40)]
                for _ in range(20):
                    formed.store.admit_batch(formed.now(), morals, vectors, payloads)
                    formed.store.tick(formed.now(), formed.epoch)
                    newest = int(formed.store.state().scalars.accepted)
                    for back in (3, 7, 20):
                        try:
                            formed.store.forget(formed.now(), max(1, newest - back))
                        except Gone:
                            continue

        for _ in range(KILLS):
            before = int(lock.acquisitions)
            writer = begin(write)
            wait_until(lambda before=before: lock.acquisitions > before + 50)  # type: ignore[misc]  # early binding
            time.sleep(rng.random() * 0.002)
            end(writer)
            formed.accept(rng.randrange(50_000))
            witness.check()
        print(f"{KILLS} kills, {lock.deaths} of them inside the section, {lock.rollbacks} transitions undone")


class TestStaged:
    """A child dies inside the section with garbage everywhere that a transition may touch before it is published."""

    @pytest.fixture
    def used(self, form: Form) -> Formed:
        """A store that has wrapped, with holes, after decisions of two rows."""
        formed = form()
        for number in range(120):
            formed.be(number % 2)
            formed.accept(number)
            formed.admit(100_000)
        formed.store.forget(formed.now(), 100)
        return formed

    @staticmethod
    def die(formed: Formed, garble: Callable[[int], object]) -> None:
        """Have a child take the mutex, run `garble(commit)` and die without letting go."""

        def work() -> None:
            take_mutex(formed.block)
            garble(int(formed.block.region("commit").position))
            os.kill(os.getpid(), 9)

        assert -9 == exit_of(begin(work))

    @staticmethod
    def fill(formed: Formed, name: str, index: int, stride: int) -> None:
        """Write garbage over one element of a region."""
        offset, _ = formed.region_bytes(name)
        formed.block.memory[offset + index * stride : offset + (index + 1) * stride] = random.randbytes(stride)

    def test_garbage_where_no_reader_looks(self, used: Formed) -> None:
        """The other state buffer, the other levels, the next log entry and the spare slot may hold anything: no reader
        sees it, and the next transition writes over it.
        """
        witness = Witness(used)
        witness.check()
        layout = used.block.layout
        before = copied(used.store.entries(int(used.store.state().position), 1)[0][0])
        state = used.store.state()
        levels, spare = int(state.levels) ^ 1, (int(state.scalars.accepted) + 1) % (layout.capacity + 1)
        strides = {region.name: region.stride for region in layout.regions()}

        def garble(commit: int) -> None:
            self.fill(used, "states", (commit + 1) & 1, strides["states"])
            self.fill(used, "levels", levels, strides["levels"])
            self.fill(used, "log", (commit + 1) % layout.log_capacity, strides["log"])
            for name in ("slots", "codes", "shadow", "vectors", "payloads"):
                self.fill(used, name, spare, strides[name])

        self.die(used, garble)
        used.be(NO_ROW)
        used.block.map.wait_ms = 0  # look only
        assert before.position == used.store.state().position
        assert bytes(used.store.entries(before.position, 1)[0][0].checksum.to_bytes(8, "little")) == bytes(
            before.checksum.to_bytes(8, "little")
        )
        witness.check()
        used.be(0)
        used.accept()
        witness.check()
        assert 1 == used.block.region("lock").deaths

    def test_a_tally_that_was_not_published(self, used: Formed) -> None:
        """The older cell was taken and garbled for a decision that never was: it is void, and then reclaimed."""

        def garble(commit: int) -> None:
            lock, cells = used.block.region("lock"), used.block.region("rows", 1).tally
            lock.intent_row, lock.intent_position, lock.intent_id = 1, commit + 1, 0
            older = 0 if cells[0].position < cells[1].position else 1
            cells[older].position, cells[older].accepted, cells[older].rejected = commit + 1, 12345, 67890

        witness, undone = Witness(used), rollbacks(used)
        self.die(used, garble)
        assert (120, 120) == used.store.tallies()[:2]
        used.accept()
        witness.check()
        assert undone + 1 == rollbacks(used)

    def test_the_first_tally_of_a_row(self, used: Formed) -> None:
        """A row that never counted anything, whose first decision was garbled, counts from nothing."""

        def garble(commit: int) -> None:
            lock, cell = used.block.region("lock"), used.block.region("rows", 3).tally[1]
            lock.intent_row, lock.intent_position, lock.intent_id = 3, commit + 1, 0
            cell.position, cell.accepted, cell.rejected = commit + 1, 12345, 67890

        self.die(used, garble)
        used.be(3)
        used.accept()
        witness = Witness(used)
        witness.check()

    @pytest.mark.parametrize("marked", [False, True])
    def test_a_deletion_that_was_not_published(self, used: Formed, marked: bool) -> None:
        """With the intent written, and with or without the mark, the memory lives: before the repair, and after it."""

        def garble(commit: int) -> None:
            lock = used.block.region("lock")
            lock.intent_row, lock.intent_position, lock.intent_id = 1, commit + 1, 110
            if marked:
                used.block.region("slots", 110 % 51).deleted_at = commit + 1

        witness = Witness(used)
        memory = used.store.memory(110)
        self.die(used, garble)
        assert memory == used.store.memory(110)
        assert 110 in [match.id for match in self.recalled(used, memory.vector)]
        used.accept()
        assert memory == used.store.memory(110)
        witness.check()

    def test_a_deletion_that_was_published_but_not_erased(self, used: Formed) -> None:
        """The memory is gone at once, and the next one to enter erases its bytes."""

        used.accept(0, b"secret")
        vector = used.store.memory(110).vector
        strides = {region.name: region.stride for region in used.block.layout.regions()}
        offset = used.region_bytes("vectors")[0] + 110 % 51 * strides["vectors"]
        used.store.forget(used.now(), 110)
        used.block.memory[offset : offset + len(vector)] = vector

        def half(_commit: int) -> None:
            used.block.region("lock").intent_id = 110

        self.die(used, half)
        with pytest.raises(Gone):
            used.store.memory(110)
        used.accept()
        assert bytes(len(vector)) == used.block.memory[offset : offset + len(vector)]
        assert 0 == used.block.region("lock").intent_id
        Witness(used).check()

    def test_death_before_anything(self, used: Formed) -> None:
        """Who dies with the mutex in hand and nothing written leaves nothing to repair."""
        undone = rollbacks(used)
        self.die(used, lambda _commit: None)
        used.accept()
        Witness(used).check()

        assert (undone, 1) == (rollbacks(used), used.block.region("lock").deaths)

    def test_many_deaths_in_a_row(self, used: Formed) -> None:
        """The mutex survives any number of owners that die."""
        for _ in range(10):
            self.die(used, lambda _commit: None)
        used.accept()

        assert 1 <= used.block.region("lock").deaths <= 10
        Witness(used).check()

    @staticmethod
    def recalled(formed: Formed, vector: bytes) -> list[Any]:
        """Return what recall finds for a vector."""
        return Recall(formed.block).nearest(vector, 100, (3, 3), payloads=False, vectors=False).matches


def accept(formed: Formed) -> object:
    """Admit an event that is accepted, evicts, and runs the whole cascade."""
    return formed.accept(7, b"payload")


def reject(formed: Formed) -> object:
    """Admit an event that is rejected."""
    return formed.admit(1)


def forget(formed: Formed) -> object:
    """Delete a memory."""
    return formed.store.forget(formed.now(), 15)


def tick(formed: Formed) -> object:
    """Consolidate."""
    return formed.store.tick(formed.now(), formed.epoch)


def epoch(formed: Formed) -> object:
    """Take over as the controller."""
    return formed.store.epoch(formed.now(), REGIME.to_record())


def command(formed: Formed) -> object:
    """Carry out the pending command, a reset."""
    return formed.store.apply_command(formed.now(), formed.epoch)


def post(formed: Formed) -> object:
    """Leave a command; nothing is committed by it."""
    return formed.store.post_command("stop")


def claim(formed: Formed) -> object:
    """Claim a worker row; nothing is committed by it."""
    return lib.mlsdm_row_claim(formed.block.map, 2, 0, 0, os.getpid(), 1)


OPERATIONS = (accept, reject, forget, tick, epoch, command, post, claim)
COMMITS = (accept, reject, forget, tick, epoch, command)


@pytest.mark.skipif(not tracee.possible(), reason="needs ptrace on x86-64")
class TestStepped:
    """Death before each instruction of a section. The block is put back after each, so that every child takes the same
    path; `stride` is the distance between the instructions that are tried.
    """

    @pytest.fixture
    def small(self, form: Form) -> Formed:
        """A store whose ring has wrapped, asleep, with work for both gates; two floats make for short loops."""
        formed = form(Layout(2, 8, 16, 64, 3), ASLEEP)
        formed.pool.vectors[:] *= np.float32(5)
        formed.store.tick(formed.now(), formed.epoch)
        for number in range(20):
            formed.be(number % 2)
            formed.accept(number, b"x" * 9)
            formed.admit(1)
        formed.be(1)
        return formed

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_death_at_instructions(self, small: Formed, operation: Callable[[Formed], object]) -> None:
        """Nothing is half done: the operation has happened or it has not, and the next event is admitted."""
        self.kill_along(small, operation, STRIDE)

    @pytest.mark.parametrize("operation", [accept, forget])
    def test_death_of_the_successor(self, small: Formed, operation: Callable[[Formed], object]) -> None:
        """One dies in the middle, and the one that comes after dies while it repairs what the first left behind."""
        self.die_twice(small, operation, 5 * STRIDE)

    def kill_along(self, formed: Formed, operation: Callable[[Formed], object], stride: int) -> None:
        """Kill along the path of one operation, and prove the block each time."""
        if operation is command:
            formed.store.post_command("reset")
        witness = Witness(formed)
        witness.check()
        image = formed.block.memory[:]
        position = int(formed.store.state().position)
        path = tracee.path_of(lambda: operation(formed))
        formed.block.memory[:] = image
        first = random.Random(SEED).randrange(stride)
        committed = []
        for number in tracee.killed_along(path, lambda: operation(formed), stride, first):
            committed.append(self.prove(formed, witness.copy(), position, f"instruction {number} of {len(path)}"))
            formed.block.memory[:] = image
        print(
            f"{operation.__name__}: {len(committed)} deaths along {len(path)} instructions, "
            f"{committed.count(False)} before and {committed.count(True)} after the commit; SEED={SEED}"
        )
        assert committed == sorted(committed), "once it is committed, it stays committed"
        if operation in COMMITS:
            assert not committed[0]
            assert committed[-1] or stride > 70  # the instructions behind the commit are about so many

    def die_twice(self, formed: Formed, operation: Callable[[Formed], object], stride: int) -> None:
        """Let a first child die at a few places; from each, kill a successor along its own path."""
        witness = Witness(formed)
        witness.check()
        image = formed.block.memory[:]
        position = int(formed.store.state().position)
        path = tracee.path_of(lambda: operation(formed))
        formed.block.memory[:] = image
        deaths = 0
        for _ in tracee.killed_along(path, lambda: operation(formed), max(len(path) // 8, 1), len(path) // 8 - 1):
            left = formed.block.memory[:]
            successor = tracee.path_of(lambda: accept(formed))
            formed.block.memory[:] = left
            for number in tracee.killed_along(successor[: len(successor) // 2], lambda: accept(formed), stride):
                self.prove(formed, witness.copy(), position, f"instruction {number} of {len(successor)}")
                deaths += 1
                formed.block.memory[:] = left
            formed.block.memory[:] = image
        print(f"{operation.__name__}: {deaths} deaths of successors")

    @staticmethod
    def prove(formed: Formed, witness: Witness, position: int, where: str) -> bool:
        """Prove the block after a death; returns whether the operation was committed."""
        try:
            committed = TestStepped.looked_at(formed) > position
            was_deleted = formed.block.region("slots", 15 % 9).deleted_at
            formed.accept(3)
            witness.check()
            if was_deleted and was_deleted <= formed.store.state().position - 1:
                with pytest.raises(Gone):
                    formed.store.memory(15)
                assert not np.frombuffer(
                    formed.block.memory, np.float32, 16, formed.region_bytes("vectors")[0] + 15 % 9 * 64
                ).any()
        except Exception as error:
            raise AssertionError(f"after death at {where}") from error
        return committed

    @staticmethod
    def looked_at(formed: Formed) -> int:
        """Read everything without the lock, as an observer does before anybody has repaired anything."""
        store = Store(formed.block)
        wait_ms, formed.block.map.wait_ms = formed.block.map.wait_ms, 0
        state, _ = store.levels()
        scalars = state.scalars
        assert (scalars.accepted, scalars.rejected) == store.tallies()[:2]
        assert len(formed.live_ids()) == state.scalars.live
        formed.block.map.wait_ms = wait_ms
        return int(state.position)
