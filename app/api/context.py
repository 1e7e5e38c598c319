"""What the routes of one worker share: the store, the settings they need, and the clock. Made once, after the fork.

Handed to every resource by app/main.py; no resource opens anything by itself, so each can be read, and tested, alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from wsgiref.types import WSGIEnvironment

from app.api.access.idempotency_keys import IdempotencyKeys
from app.api.codec.vector_codec import VectorCodec
from app.telemetry.latency_histogram import LatencyHistogram
from core.settings.config import Config
from shm.store import Recall, Store


@dataclass
class Context:
    """One worker's view.

    `clock` returns CLOCK_BOOTTIME in ns; `leaving` says whether the server has been told to stop; `workers` is how many
    the arbiter was configured with when this one was forked; `charge` takes tokens from whoever asks, and may raise.
    """

    config: Config
    store: Store
    recall: Recall
    latency: LatencyHistogram  # of events
    clock: Callable[[], int]
    leaving: Callable[[], bool]
    workers: int
    charge: Callable[[WSGIEnvironment, int], None] = lambda _environ, _tokens: None
    idempotency: IdempotencyKeys = field(init=False)
    codec: VectorCodec = field(init=False)
    boot_id: str = field(init=False)
    payload_size_max: int = field(init=False)

    def __post_init__(self) -> None:
        self.codec = VectorCodec(self.config.dimension)
        self.idempotency = IdempotencyKeys(self.store.block.secret)
        self.boot_id = self.store.block.boot_id
        self.payload_size_max = self.config.payload_size_max
