"""A decision, as a client sees it: the answer to an event, made from what the native core has just decided, or from the
receipt of an earlier time when the event came with an idempotency key.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.api.fields import BootId, Ema, MemoryId, MoralValue, Ordinal, Phase, Position, Threshold, component
from core.phases import PHASE_NAMES
from shm import store


@component("Decision")
class DecisionView(msgspec.Struct, omit_defaults=True, gc=False):
    """What was decided about one event.

    `sequence` counts decisions, `memory_id` memories, `position` everything in the log.
    """

    accepted: bool
    reason: Annotated[
        Literal["accepted", "moral"],
        Meta(description="Why: `moral` when the moral value was too low.", examples=["accepted"]),
    ]
    sequence: Ordinal
    moral_value: MoralValue
    threshold_before: Annotated[Threshold, Meta(description="The threshold that this event was held against.")]
    moral_filter_threshold: Annotated[Threshold, Meta(description="The threshold for the next event.")]
    ema: Ema
    current_phase: Phase
    position: Position
    boot_id: BootId
    memory_id: MemoryId | None = None


def to_decision_view(decided: store.DecisionFields, boot_id: str) -> DecisionView:
    """Return a decision of the native core in the client's words.

    `current_phase` is the one the event was tagged with.
    """
    position, sequence, memory_id, moral, theta_before, theta_after, ema, phase, _repeated = decided
    return DecisionView(
        memory_id != 0,
        "accepted" if memory_id else "moral",
        sequence,
        moral,
        theta_before,
        theta_after,
        ema,
        PHASE_NAMES[phase],
        position,
        boot_id,
        memory_id or None,
    )
