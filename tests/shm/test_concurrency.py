"""Several processes at once: one sequence, which replays to the live state, and no reader sees a mixed copy."""

import os
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from shm.block import Block
from shm.errors import Busy, Corrupt, Gone, Unknown
from shm.layout import KINDS, Layout
from shm.records import decided_of
from shm.store import Store
from testing.block_fixture import NORM_MAX, Formed, Witness, begin, end, exit_of, wait_until
from tests.shm.conftest import Form

EVENTS = 4000  # of each writer
READS = int(os.environ.get("READS", "100000"))


class TestWriters:
    @pytest.mark.parametrize("writers", [2, 4])
    def test_decisions_are_one_sequence(self, form: Form, writers: int) -> None:
        """What several writers admit, one by one and in batches, is numbered 1 … n without gap or repeat, and the log
        replays to the live state exactly: threshold, mean, rhythm, levels, tallies, checksums, live memories.
        """
        formed = form(Layout(16, 50, 64, writers * EVENTS + 10_000, writers, 16))
        gate_read, gate_write = os.pipe()

        def write(row: int) -> None:
            os.close(gate_write)
            formed.be(row)
            rng = random.Random(row)
            os.read(gate_read, 1)  # all begin at once
            for _ in range(EVENTS // 2):
                formed.admit(rng.randrange(1_000_001), os.urandom(rng.randrange(65)))
            for _ in range(EVENTS // 2 // 50):
                events = [formed.pool.event(rng.randrange(1_000_001)) for _ in range(50)]
                decisions, status = formed.store.admit_batch(
                    formed.now(),
                    np.array([moral for moral, _ in events]),
                    np.stack([vector for _, vector in events]),
                    None,
                )
                assert (len(decisions), status) == (50, 0)
                try:
                    formed.store.forget(
                        formed.now(), max(1, int(formed.store.state().scalars.newest_id) - rng.randrange(50))
                    )
                except (Gone, Unknown):
                    continue

        pids = [begin(lambda row=row: write(row)) for row in range(writers)]  # type: ignore[misc]  # early binding
        os.close(gate_read)
        os.close(gate_write)
        assert [0] * writers == [exit_of(pid) for pid in pids]

        state = formed.store.state()
        total = int(state.scalars.accepted + state.scalars.rejected)
        entries, _ = formed.store.entries(1, 1_000_000)
        numbers = [
            int(entry.after.accepted + entry.after.rejected) for entry in entries if KINDS[entry.kind] == "decision"
        ]
        rows = [entry.row for entry in entries if KINDS[entry.kind] == "decision"]
        assert writers * EVENTS == total
        assert list(range(1, total + 1)) == numbers
        assert [EVENTS] * writers == [rows.count(row) for row in range(writers)]
        Witness(formed).check()

    def test_tallies_add_up_at_every_position(self, form: Form) -> None:
        """While one worker decides as fast as it can, the sum of the rows is a committed state: accepted + rejected is
        the number of decisions at that position.
        """
        formed = form(Layout(2, 10, 0, 1024, 64, 16))
        formed.be(63)
        writer = begin(hot(formed, 63))
        reader = begin(lambda: self._sum_up(formed))
        try:
            assert exit_of(reader) == 0
        finally:
            end(writer)

    @staticmethod
    def _sum_up(formed: Formed) -> None:
        formed.be(0)
        done = 0
        while done < 200_000:
            accepted, rejected, position = formed.store.tallies()
            assert accepted + rejected == position - 1  # the first position was the start
            done += 1


def hot(formed: Formed, row: int, count: int = 200) -> Callable[[], None]:
    """Return a writer that stays in the native core nearly all of the time, until it is killed."""
    morals = np.linspace(0, 1, count)
    vectors = np.zeros((count, formed.block.layout.dimension), np.float32)
    vectors[:, 0] = np.arange(count)

    def write() -> None:
        formed.be(row)
        while True:
            formed.store.admit_batch(formed.now(), morals, vectors, None)

    return write


class TestTornReads:
    """One hot writer; every read that is given out must be whole. `READS` of each kind."""

    @pytest.fixture
    def busy(self, form: Form) -> Iterator[Formed]:
        """A store that another process keeps writing to: event n has moral n ÷ 10⁶, vector (n, n, …), payload n."""
        formed = form(Layout(64, 20, 256, 256, 4, 16))

        def write() -> None:
            formed.be(1)
            for number in range(1, 2**31):
                moral = 0.9 + number % 100_000 / 1_000_000
                vector = np.full(64, number % 100_000, np.float32)
                payload = (number % 100_000).to_bytes(4, "little") * (number % 64 + 1)
                formed.store.admit(formed.now(), moral, vector, payload)

        writer = begin(write)
        wait_until(lambda: formed.store.state().scalars.accepted > 300)
        yield formed
        end(writer)

    def test_state_is_of_one_position(self, busy: Formed) -> None:
        """Counters, position and levels of one state belong together."""
        newest = 0
        for _ in range(READS):
            state, (l1, _, _) = busy.store.levels()
            assert state.scalars.accepted + state.scalars.rejected == state.position - 1
            assert state.scalars.live == 20
            assert state.position >= newest
            newest = int(state.position)
            level = np.frombuffer(busy.store.level_bytes(), np.float32, 64)
            assert l1 >= 0
            assert (level == level[0]).all()

    def test_memory_is_of_one_event(self, busy: Formed) -> None:
        """Slot, vector and payload of one memory belong together; a memory that left the window meanwhile is Gone."""
        whole = gone = 0
        while whole + gone < READS:
            memory_id = int(busy.store.state().scalars.newest_id) - (whole + gone) % 22
            try:
                memory = busy.store.memory(memory_id)
            except Gone:
                gone += 1
                continue
            number = memory_id % 100_000
            assert (memory_id, memory_id + 1) == (memory.id, memory.position)
            assert memory.moral == 0.9 + number / 1_000_000
            assert memory.vector == np.full(64, number, np.float32).tobytes()
            assert memory.payload == number.to_bytes(4, "little") * (memory_id % 64 + 1)
            whole += 1
        assert whole > READS // 2

    def test_entries_are_consecutive(self, busy: Formed) -> None:
        """Pages of the log are consecutive and follow from each other; overwritten ones are Gone."""
        read = gone = 0
        while read < READS:
            position = int(busy.store.state().position)
            try:
                entries, oldest = busy.store.entries(max(1, position - random.randrange(256)), 40)
            except Gone:
                gone += 1
                continue
            for entry in entries:
                decided = decided_of(entry)
                assert entry.position == entry.after.accepted + 1 == entry.before.accepted + 2 == decided.memory_id + 1
                assert entry.position >= oldest
                assert decided.moral == 0.9 + decided.memory_id % 100_000 / 1_000_000
            read += len(entries)

    def test_observer_gets_busy_and_no_mixed_copy(self, busy: Formed) -> None:
        """An observer that may not take the lock gets Busy if it finds no consistent copy."""
        fd = os.open(f"/proc/self/fd/{busy.block.fd}", os.O_RDONLY)
        store = Store(Block.open(fd, writable=False))
        store.block.bind(os.getpid(), 0, 0, NORM_MAX)
        answers = {"whole": 0, "busy": 0}
        for _ in range(READS // 10):
            try:
                state, _ = store.levels()
                assert state.scalars.accepted == state.position - 1
                memory = store.memory(int(state.scalars.newest_id))
                assert memory.vector == np.full(64, memory.id % 100_000, np.float32).tobytes()
                answers["whole"] += 1
            except Busy:
                answers["busy"] += 1
            except Gone:
                continue
        assert answers["whole"] > 0
        store.block.close()

    def test_changing_slot_is_not_corrupt(self, busy: Formed) -> None:
        """A slot that changes during the check is not reported as corrupt."""
        assert all(busy.store.check_slot(number % 21)[0] for number in range(READS))

    def test_sound_block_is_never_corrupt(self, busy: Formed) -> None:
        """No read of a sound block under a busy writer raises Corrupt."""
        for number in range(READS // 4):
            try:
                busy.store.memory(int(busy.store.state().scalars.newest_id) - number % 25)
            except (Gone, Unknown):
                continue
            except Corrupt as error:
                pytest.fail(f"read {number}: {error}")
