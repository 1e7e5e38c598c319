"""GET /state: the committed state at one position of the log. The member names follow the runbook."""

from collections.abc import Mapping
from typing import Annotated, ClassVar
from wsgiref.types import WSGIEnvironment

import falcon
import msgspec
from msgspec import Meta

from app.api.codec.media_types import JSON, encode
from app.api.context import Context
from app.api.fields import (
    Accepted,
    BootId,
    Capacity,
    Ema,
    Live,
    LogId,
    Norm,
    Phase,
    Position,
    Rejected,
    Step,
    Threshold,
    Total,
)
from app.api.operation import Operation
from app.api.problem_codes import STORE
from core.access.keys import Role
from core.phases import PHASE_NAMES


class StateView(msgspec.Struct):
    """The committed state. `latent_events_count` counts the rejected events, `step` the steps of the rhythm."""

    L1_norm: Norm
    L2_norm: Norm
    L3_norm: Norm
    current_phase: Phase
    latent_events_count: Rejected
    accepted_events_count: Accepted
    total_events_processed: Total
    moral_filter_threshold: Threshold
    ema: Ema
    memory_used: Live
    capacity: Capacity
    dimension: Annotated[int, Meta(description="Number of elements in a vector.", ge=1, examples=[384])]
    step: Step
    position: Position
    boot_id: BootId
    log_id: LogId


class StateResource:
    """GET /state."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation("Read threshold, phase, counters and level norms.", Role.READ, StateView, refusals=STORE)
    }

    def __init__(self, context: Context) -> None:
        self.context = context
        self.fast_responders = {"GET": self.show}

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the state."""
        response.content_type = JSON
        response.data = self.show(request.env)

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body

    def show(self, _environ: WSGIEnvironment) -> bytes:
        """Return the state as JSON."""
        context = self.context
        state, norms = context.store.levels()
        scalars = state.scalars
        accepted, rejected = scalars.accepted, scalars.rejected
        return encode(
            StateView(
                *norms,
                PHASE_NAMES[scalars.phase],
                rejected,
                accepted,
                accepted + rejected,
                scalars.theta,
                scalars.ema,
                scalars.live,
                context.config.capacity,
                context.config.dimension,
                scalars.step,
                state.position,
                context.boot_id,
                context.log_id,
            )
        )
