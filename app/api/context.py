"""Context: what the routes of one worker share. Made once, after the fork, and handed to every resource.

Invariants: a resource opens nothing by itself, so each can be read and tested alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from wsgiref.types import WSGIEnvironment

from app.api.access.idempotency_keys import IdempotencyKeys
from app.api.codec.vector_codec import VectorCodec
from app.telemetry.latency_histogram import LatencyHistogram
from core.settings.config import Config
from shm.recall import Recall
from shm.store import Store


@dataclass
class Context:
    """What the routes of one worker share."""

    config: Config
    store: Store  # for the loop's thread; a route on the pool makes a Store of its own
    recall: Recall  # for any thread
    latency: LatencyHistogram  # of events
    clock: Callable[[], int]  # CLOCK_BOOTTIME in ns
    is_stopping: Callable[[], bool]  # whether the server has been told to stop
    workers: int  # the configured number when this worker was forked
    # charge(environ, tokens): charges the client of a request; raises Problem.
    charge: Callable[[WSGIEnvironment, int], None] = lambda _environ, _tokens: None
    # count_rejected(tier, count): counts events of a client that the moral filter has rejected.
    count_rejected: Callable[[str, int], None] = lambda _tier, _count: None
    idempotency: IdempotencyKeys = field(init=False)
    codec: VectorCodec = field(init=False)
    boot_id: str = field(init=False)
    log_id: str = field(init=False)
    payload_size_max: int = field(init=False)
    log_time: Callable[[], int] = field(init=False)  # log time now, in ns UTC

    def __post_init__(self) -> None:
        self.codec = VectorCodec(self.config.dimension)
        self.idempotency = IdempotencyKeys(self.store.block.secret)
        block, clock = self.store.block, self.clock
        self.boot_id, self.log_id = block.boot_id, block.log_id
        log_time_at_boot = block.log_time(0)
        self.log_time = lambda: clock() + log_time_at_boot  # PERF: one frame for each event, not two
        self.payload_size_max = self.config.payload_size_max
