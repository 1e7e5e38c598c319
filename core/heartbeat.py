"""Heartbeats in the block: their age, and when the worker or the controller that writes them counts as silent.

Workers beat four times a second, the controller fifty times. A dead controller is respawned in milliseconds and a
stuck one is replaced within two seconds, so a process that is silent for longer is not just being replaced.
"""

from typing import Final

from core.clock import elapsed_seconds
from shm.records import RowPointer

SILENCE_SECONDS: Final = 2.0


def is_silent(heartbeat_ns: int, now_ns: int) -> bool:
    """Return whether a heartbeat of that time is too old for its writer to be healthy."""
    return elapsed_seconds(heartbeat_ns, now_ns) >= SILENCE_SECONDS


def row_is_served(row: RowPointer, now_ns: int) -> bool:
    """Return whether a live worker owns this `row` of the block. A worker that left or died leaves its beat behind."""
    return bool(row.pid) and not is_silent(int(row.heartbeat_ns), now_ns)
