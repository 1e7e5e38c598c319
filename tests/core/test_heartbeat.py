"""Heartbeats: when a worker counts as serving."""

from core.heartbeat import SILENCE_SECONDS, is_silent, row_is_served
from testing.block_fixture import Formed

SILENCE_NS = int(SILENCE_SECONDS * 1e9)


def test_a_heartbeat_is_silent_from_two_seconds_on() -> None:
    """One that was written after the clock was read is fresh."""
    assert [is_silent(10**12, 10**12 + late) for late in (-1, 0, SILENCE_NS - 1, SILENCE_NS)] == [
        False, False, False, True,
    ]  # fmt: skip


def test_a_row_is_served_while_its_owner_beats() -> None:
    """Neither when it is free, nor when its owner is silent."""
    formed = Formed()
    row = formed.block.region("rows", 0)
    row.heartbeat_ns = 10**12

    assert not row_is_served(row, 10**12)
    row.pid = 1
    assert row_is_served(row, 10**12)
    assert not row_is_served(row, 10**12 + SILENCE_NS)
    formed.close()
