"""The follower: every position once, as an entry or in a gap; contents as long as their bytes are there; no writing."""

import contextlib
import os
import random
import threading
from collections.abc import Callable

import pytest

from core.follower import Cursor, CursorError, Followed, Follower, Gap, Missing
from core.memory_view import MemoryView
from shm.errors import Gone
from shm.layout import Layout
from shm.records import bytes_of, new_idempotency_hash
from shm.store import Content, Store
from testing.block_fixture import Formed, begin, end, exit_of, wait_until
from testing.second_block import SecondBlock, same_history
from tests.core.conftest import Form

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
KILLS = int(os.environ.get("KILLS", "100"))


def entries_of(batch: list[Followed | Gap]) -> list[Followed]:
    """Return a batch that has no gaps."""
    assert all(isinstance(item, Followed) for item in batch)
    return [item for item in batch if isinstance(item, Followed)]


class TestReading:
    def test_entries_and_contents_in_order(self, form: Form) -> None:
        """Entries come as they are in the log; those that wrote a memory come with its vector and payload."""
        formed = form()
        formed.accept(7, b"seven")
        formed.admit(1)
        formed.store.update(formed.now(), 1, b"eight")
        formed.store.tick(formed.now(), formed.epoch)
        follower = Follower(formed.block)
        first, second = entries_of(follower.read(2)), entries_of(follower.read())
        assert [bytes_of(item.entry) for item in (*first, *second)] == [
            bytes_of(formed.entry(position)) for position in range(1, 6)
        ]
        eight = Content(formed.pool.event(950_007)[1].tobytes(), b"eight")
        assert [item.content for item in (*first, *second)] == [None, Missing.GONE, None, eight, None]
        assert (follower.cursor, follower.lag) == (Cursor(formed.block.log_id, 5), 0)
        assert follower.read() == []

    def test_content_while_the_memory_lives(self, form: Form) -> None:
        """A memory is read from its slot as it was written."""
        formed = form()
        for number in range(20):
            formed.accept(number, b"%d" % number)
        contents = [item.content for item in entries_of(Follower(formed.block).read())]
        assert contents[1:] == [
            Content(formed.pool.event(950_000 + number)[1].tobytes(), b"%d" % number) for number in range(20)
        ]

    def test_content_of_an_evicted_memory(self, form: Form) -> None:
        """What was evicted can be read until its slot is written again: 1 + slack memories later."""
        formed = form(Layout(16, 5, 64, 64, 4, 16, slack=3))
        for number in range(12):
            formed.accept(number)
        contents = [item.content for item in entries_of(Follower(formed.block).read())][1:]
        assert [content is Missing.GONE for content in contents] == [True] * 3 + [False] * 9

    @pytest.mark.parametrize("removal", ["forget", "supersede", "update"])
    def test_content_that_was_erased(self, form: Form, removal: str) -> None:
        """What a client has deleted or replaced is not read from its slot, though nobody has written it again."""
        formed = form()
        formed.accept()
        moral, vector = formed.pool.event(960_000)
        removals: dict[str, Callable[[], object]] = {
            "forget": lambda: formed.store.forget(formed.now(), 1),
            "supersede": lambda: formed.store.supersede(formed.now(), 1, moral, vector, b""),
            "update": lambda: formed.store.update(formed.now(), 1, b""),
        }
        removals[removal]()
        assert entries_of(Follower(formed.block).read())[1].content is Missing.GONE

    def test_damaged_memory(self, form: Form) -> None:
        """A memory whose bytes do not match is a value, and so it stays until it is entered as lost."""
        formed = form()
        formed.accept()
        offset, _ = formed.region_bytes("vectors")
        formed.block.memory[offset + formed.slot_of(1) * formed.block.layout.vector_stride] ^= 1
        assert entries_of(Follower(formed.block).read())[1].content is Missing.DAMAGED
        formed.store.lose(formed.now(), 1)
        assert entries_of(Follower(formed.block).read())[1].content is Missing.GONE

    def test_damaged_entry(self, form: Form) -> None:
        """A damaged entry is a gap of one position; those around it are read."""
        formed = form()
        for _ in range(5):
            formed.accept()
        formed.block.region("log", 3).after.theta += 1
        follower = Follower(formed.block)
        before, gap = follower.read()[:3], follower.cursor
        assert [type(item) for item in before] == [Followed, Followed, Gap]
        assert before[2] == Gap(3, 3, damaged=True)
        assert gap.position == 3
        assert [int(item.entry.position) for item in entries_of(follower.read())] == [4, 5, 6]


class TestGaps:
    def test_overwritten_positions(self, form: Form) -> None:
        """What the log does not hold any more is one gap, and reading goes on at the oldest entry that it holds."""
        formed = form(Layout(16, 5, 64, 16, 4, 16))
        for _ in range(40):
            formed.accept()
        follower = Follower(formed.block)
        gap, *rest = follower.read()
        assert gap == Gap(1, 26, damaged=False)
        assert [int(item.entry.position) for item in entries_of(rest)] == list(range(27, 42))

    def test_follower_that_is_overtaken(self, form: Form) -> None:
        """Under writers that overtake it again and again, entries and gaps are all positions, each once; a gap holds
        only positions that the log could not hold any more.
        """
        capacity = 64
        formed = form(Layout(16, 5, 64, capacity, 4, 16))
        writers = [begin(lambda row=row: flood(formed, row)) for row in range(2)]  # type: ignore[misc]  # early binding
        follower, at, gaps = Follower(formed.block), 0, 0
        try:
            while gaps < 50 or at < 20_000:
                for item in follower.read():
                    newest = formed.block.position
                    if isinstance(item, Gap):
                        assert item.first == at + 1 <= item.last
                        assert item.last <= newest + 1 - capacity
                        at, gaps = item.last, gaps + 1
                    else:
                        at += 1
                        assert item.entry.position == at
                assert follower.cursor == Cursor(formed.block.log_id, at)
        finally:
            for writer in writers:
                end(writer)


def flood(formed: Formed, row: int) -> None:
    """Admit events for ever."""
    formed.be(row)
    while True:
        formed.decide(random.randrange(1_000_001))


class TestCursor:
    def test_text(self, form: Form) -> None:
        """A cursor is a text of history and position, and is read back from it."""
        log_id = form().block.log_id
        assert Cursor.parse(f"{log_id}:17") == (log_id, 17)
        assert str(Cursor(log_id, 17)) == f"{log_id}:17"

    @pytest.mark.parametrize("text", ["", "17", "abc:17", f"{'0' * 32}:", f"{'0' * 32}:-1", f"{'0' * 32}:017"])
    def test_text_that_is_none(self, text: str) -> None:
        """Another text is refused with what was expected."""
        with pytest.raises(CursorError, match=f"cursor is {text!r}, expected log_id:position"):
            Cursor.parse(text)

    def test_reading_goes_on(self, form: Form) -> None:
        """A follower that begins at the cursor of another one continues where that one was."""
        formed = form()
        formed.accept()
        follower = Follower(formed.block)
        follower.read()
        formed.accept()
        successor = MemoryView(formed.block).follow(follower.cursor)
        assert [int(item.entry.position) for item in entries_of(successor.read())] == [3]

    def test_another_history(self, form: Form) -> None:
        """A cursor of another history is refused, and so is a position that has not happened."""
        formed, other = form(), form()
        with pytest.raises(CursorError, match=f"of the history {other.block.log_id}, this block has"):
            Follower(formed.block, Cursor(other.block.log_id, 0))
        with pytest.raises(CursorError, match="cursor is at position 2, the newest one is 1"):
            Follower(formed.block, Cursor(formed.block.log_id, 2))


class TestWaiting:
    def test_wait(self, form: Form) -> None:
        """It returns False when nothing has happened, and True as soon as something has."""
        formed = form()
        follower = Follower(formed.block)
        assert follower.wait(0)
        follower.read()
        assert not follower.wait(0.01)
        later = threading.Timer(0.05, formed.accept)
        later.start()
        assert follower.wait(300)
        assert follower.lag == 1
        later.join()

    def test_a_process_that_may_only_read(self, form: Form) -> None:
        """It follows a block that is mapped read-only, while others hold the lock, and changes nothing."""
        formed = form()
        formed.accept()
        image = formed.block.memory[:]

        def follow() -> None:
            formed.block.restrict(readable=True)
            formed.block.map.wait_ms = 0
            follower = MemoryView(formed.block).follow()
            assert follower.wait(0)
            assert len(follower.read()) == 2
            assert not follower.wait(0)

        assert exit_of(begin(follow)) == 0
        assert image == formed.block.memory[:]


class TestSecondBlock:
    def test_killed_follower(self, form: Form) -> None:
        """Writers change a block while a process feeds a second one from it. That process is killed again and again,
        and so are the writers; the second block is the cursor. In the end both are equal.
        """
        print(f"rerun with SEED={SEED} KILLS={KILLS} pytest {__file__}")
        rng = random.Random(SEED)
        formed = form(Layout(64, 200, 64, 4096, 4, 16, slack=400))
        second = SecondBlock(formed)

        def writer_of(row: int) -> int:
            seed = rng.getrandbits(32)
            return begin(lambda: write(formed, second, row, random.Random(seed)))

        writers = [writer_of(row) for row in range(3)]
        try:
            for _ in range(KILLS):
                feeder = begin(lambda: feed(formed, second))
                target = second.block.position + rng.randrange(400)
                wait_until(lambda target=target: second.block.position >= target)  # type: ignore[misc]
                end(feeder)
                row = rng.randrange(3)
                end(writers[row])
                writers[row] = writer_of(row)
        finally:
            for writer in writers:
                end(writer)
        formed.be(0)
        formed.accept()
        feeder = begin(lambda: feed(formed, second))
        wait_until(lambda: second.block.position == formed.block.position)
        end(feeder)
        same_history(formed.block, second.block)
        assert formed.store.tallies() == second.store.tallies()
        lock = formed.block.region("lock")
        print(f"{KILLS} kills of each kind within {formed.block.position} positions, {lock.rollbacks} of them undone")
        second.close()


LAG_MAX = 300  # positions: with a slack of 400 every memory can still be read


def feed(formed: Formed, second: SecondBlock) -> None:
    """Apply what happens in a block to the second one, for ever; the mapping of the first one is read-only."""
    formed.block.restrict(readable=True)
    formed.block.map.wait_ms = 0
    follower = Follower(formed.block, Cursor(formed.block.log_id, second.block.position))
    while True:
        for item in follower.read():
            assert isinstance(item, Followed)
            assert not isinstance(item.content, Missing)
            assert second.apply(item.entry, item.content)
        follower.wait(1)


def write(formed: Formed, second: SecondBlock, row: int, rng: random.Random) -> None:
    """Change a block in every way, for ever, but wait while the second block is far behind.

    Memories that the other block does not have yet are not removed: their bytes would be erased before they are read.
    """
    formed.be(row)
    store = Store(formed.block)
    while True:
        wait_until(lambda: formed.block.position - second.block.position < LAG_MAX)
        what, number = rng.random(), rng.randrange(1_000_001)
        payload = b"x" * rng.randrange(65)
        if what < 0.4:
            formed.decide(number, payload)
        elif what < 0.7:
            formed.decide(number, payload, new_idempotency_hash((rng.getrandbits(64), 0), number))
        elif what < 0.8:
            store.tick(formed.now(), formed.epoch)
        else:
            newest = second.block.region("states", second.block.position & 1).scalars.newest_id
            memory_id = rng.randrange(3, 150) // 3 * 3 + row  # of its own: no other writer removes it
            memory_id = max(1, newest // 3 * 3 - memory_id)
            with contextlib.suppress(Gone):
                if store.memory(memory_id).position > second.block.position:
                    continue
                moral, vector = formed.pool.event(number)
                if what < 0.86:
                    store.update(formed.now(), memory_id, payload)
                elif what < 0.93:
                    store.supersede(formed.now(), memory_id, moral, vector, payload)
                else:
                    store.forget(formed.now(), memory_id)
