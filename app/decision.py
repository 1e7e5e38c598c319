"""A decision, as a client sees it: the answer to an event, made from the log entry that the native core has just
written.
"""

from typing import Literal

import msgspec

from core.rhythm import PHASE_NAMES
from shm._native import ffi
from shm.store import Entry


class Decision(msgspec.Struct, omit_defaults=True):
    """What was decided about one event.

    `sequence` counts decisions, `memory_id` memories, `position` everything in the log.
    """

    accepted: bool
    reason: Literal["accepted", "moral"]
    sequence: int
    moral_value: float
    threshold_before: float
    moral_filter_threshold: float
    ema: float
    current_phase: str
    position: int
    boot_id: str
    memory_id: int | None = None


def decision_of(entry: Entry, boot_id: str) -> Decision:
    """Return the decision that a log entry of kind decision records.

    `current_phase` is the one the event was tagged with.
    """
    before, after = entry.before, entry.after
    decided = ffi.cast("struct mlsdm_decided *", entry.detail)
    memory_id = decided.memory_id
    return Decision(
        memory_id != 0,
        "accepted" if memory_id else "moral",
        after.accepted + after.rejected,
        decided.moral,
        before.theta,
        after.theta,
        after.ema,
        PHASE_NAMES[before.phase],
        entry.position,
        boot_id,
        memory_id or None,
    )
