"""GET /state: the committed state at one position, in the names that clients of this system already use."""

import falcon
import msgspec

from app.context import Context
from app.events import encode
from app.vector import JSON
from core.rhythm import PHASE_NAMES


class StateView(msgspec.Struct):
    """The committed state. `latent_events_count` are the rejected ones; `step` counts the rhythm's steps."""

    L1_norm: float
    L2_norm: float
    L3_norm: float
    current_phase: str
    latent_events_count: int
    accepted_events_count: int
    total_events_processed: int
    moral_filter_threshold: float
    ema: float
    memory_used: int
    capacity: int
    dimension: int
    step: int
    position: int
    boot_id: str


class StateResource:
    """The committed state."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Return the state."""
        context = self.context
        state, norms = context.store.levels()
        scalars = state.scalars
        accepted, rejected = scalars.accepted, scalars.rejected
        response.content_type = JSON
        response.data = encode(
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
            )
        )

    on_head = on_get  # RFC 9110 §9.1: what has GET has HEAD; the body is left out on the way
