"""Decision view: the response to an event, made from what the native core decided, now or (by a receipt) earlier."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.api.codec.rfc3339 import rfc3339
from app.api.fields import (
    BootId,
    CreatedAt,
    Ema,
    LogId,
    MemoryId,
    MoralValue,
    Ordinal,
    Phase,
    Position,
    Threshold,
    component,
)
from core.phases import PHASE_NAMES
from shm import store


@component("Decision")
class DecisionView(msgspec.Struct, omit_defaults=True, gc=False):
    """The decision about one event.

    `sequence` numbers decisions, `memory_id` numbers memories, `position` numbers all entries of the log.
    """

    accepted: bool
    reason: Annotated[
        Literal["accepted", "moral"],
        Meta(description="`accepted`, or `moral` if the moral value was too low.", examples=["accepted"]),
    ]
    sequence: Ordinal
    moral_value: MoralValue
    threshold_before: Annotated[Threshold, Meta(description="The threshold that this event was compared with.")]
    # After the example of an event: the first acceptance raises the threshold from 0.5.
    moral_filter_threshold: Annotated[Threshold, Meta(description="The threshold for the next event.", examples=[0.55])]
    ema: Ema
    current_phase: Phase
    position: Position
    boot_id: BootId
    log_id: LogId
    created_at: CreatedAt
    memory_id: MemoryId | None = None


def to_decision_view(decided: store.DecisionFields, boot_id: str, log_id: str) -> DecisionView:
    """Return the view of a decision. `current_phase` is the phase that the event was tagged with."""
    position, sequence, memory_id, time_ns, moral, theta_before, theta_after, ema, phase, _flags, _repeated = decided
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
        log_id,
        rfc3339(time_ns),
        memory_id or None,
    )
