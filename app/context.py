"""What the routes of one worker share: the store, the settings they need, and the clock. Made once, after the fork.

Handed to every resource by app/main.py; no resource opens anything by itself, so each can be read, and tested, alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import WSGIEnvironment

from prometheus_client import Histogram

from app.vector import Codec
from core.config import Config
from shm.store import Recall, Store


@dataclass
class Context:
    """One worker's view.

    `clock` returns CLOCK_BOOTTIME in ns; `row` is the worker's own row of the block; `leaving` says whether the server
    has been told to stop.
    """

    config: Config
    store: Store
    recall: Recall
    row: Any
    latency: Histogram
    clock: Callable[[], int]
    leaving: Callable[[], bool]
    codec: Codec = field(init=False)
    boot_id: str = field(init=False)
    payload_size_max: int = field(init=False)

    def __post_init__(self) -> None:
        self.codec = Codec(self.config.dimension)
        self.boot_id = self.store.block.boot_id
        self.payload_size_max = self.config.payload_size_max

    def count_latency(self, environ: WSGIEnvironment) -> None:
        """Count one event request, from the complete request to its encoded answer."""
        elapsed_ns = time.monotonic_ns() - environ["mlsdm.received_ns"]
        self.row.latency_ns += elapsed_ns
        self.row.latency_count += 1
        self.latency.observe(elapsed_ns * 1e-9)
