"""Torn reads and bit flips on a small scale, and that a missed one would be noticed."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from loadtests.faults import bit_flips, torn_reads
from loadtests.faults.bit_flips import BitFlips
from loadtests.faults.fault import FaultOptions
from shm import store
from testing.live_server import LiveServer

SEED: Final = random.SystemRandom().randrange(2**32)


def test_no_read_is_torn(tmp_path: Path) -> None:
    """Under a fast writer, every returned memory is whole, and some are returned."""
    count, figures, broken = torn_reads.torn_reads(FaultOptions(0.002, SEED, tmp_path))

    assert broken == []
    assert count == 20_000
    assert figures["whole"] != 0
    assert figures["torn"] == 0


def test_a_torn_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that mixes two memories is detected."""
    whole = store.Store.memory

    def torn(self: store.Store, memory_id: int) -> store.Memory:
        memory = whole(self, memory_id)
        return memory._replace(payload=memory.payload[:-1] + b"x")

    monkeypatch.setattr(store.Store, "memory", torn)
    _, figures, broken = torn_reads.torn_reads(FaultOptions(0.0001, SEED, tmp_path))

    assert figures["whole"] == 0
    assert f"{figures['torn']} reads gave out a memory that is not whole" in broken


@pytest.fixture(scope="module")
def flips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BitFlips]:
    """A server with memories in it, and a hand in its block."""
    directory = tmp_path_factory.mktemp("flips")
    server = LiveServer(directory, dict(bit_flips.ENVIRON))
    try:
        flips = BitFlips(server.start(), FaultOptions(0.005, SEED, directory))
        flips.fill(50)
        yield flips
        flips.close()
    finally:
        server.kill()


class TestBitFlips:
    @pytest.mark.parametrize("part", ["header", "epoch", "state", "levels", "log", "receipts", "heads", "links"])
    def test_a_flipped_bit_is_noticed(self, flips: BitFlips, part: str) -> None:
        """Nothing is built on a flipped bit, and with the bit restored the server continues."""
        flips.broken.clear()
        getattr(flips, part)()

        assert flips.broken == [], SEED

    def test_a_corrupt_memory_is_not_returned(self, flips: BitFlips) -> None:
        """A memory with a flipped bit is returned to no client."""
        flips.broken.clear()
        flips.memories(3)

        assert flips.broken == [], SEED

    def test_a_damaged_mark_hides_and_revives_nothing(self, flips: BitFlips) -> None:
        """What lives is not reported gone, and what was deleted does not return."""
        flips.broken.clear()
        flips.marks(4)

        assert flips.broken == [], SEED

    def test_an_unnoticed_flip_is_reported(self, flips: BitFlips) -> None:
        """A bit without a check is reported as unnoticed."""
        flips.broken.clear()
        offset = flips.block.layout.regions()[0].size
        flips.expect_refusal("header", 8 * offset, "/state")

        assert len(flips.broken) == 1
