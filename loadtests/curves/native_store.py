"""The native core without a server: a block of any size in this process, and vectors of any dimension to fill it.

The settings are those of a fresh server, except that every moral value is accepted. This process owns row 0.
"""

import os
import time
from typing import Final

import numpy as np

from core.clock import boot_clock
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.regime import Regime
from core.settings.config import Config
from loadtests.bench.vectors import CLUSTERS, SEED, SPREAD, Floats, unit
from shm.block import Block, BlockIdentity
from shm.errors import OK
from shm.layout import Layout
from shm.recall import Recall
from shm.store import Store

ANY: Final = (3, 3)  # memories of both phases, in either phase
BATCH: Final = 1_000
ACCEPTED: Final = 1.0


class NativeStore:
    """A block with its store. `fill` remembers; `nearest` asks. The mapping goes with the object."""

    def __init__(self, dimension: int, capacity: int, payload_size_max: int = 0) -> None:
        layout = Layout(dimension, capacity, payload_size_max, log_capacity=65_536, rows=4, receipt_capacity=16)
        self.block = Block.create(layout, BlockIdentity.new(), time.time_ns(), boot_clock())
        self.block.bind(os.getpid(), 0, LOCK_WAIT_MILLISECONDS.value, VECTOR_NORM.value)
        self.store = Store(self.block)
        self.store.begin_epoch(self.block.log_time(boot_clock()), Regime.of(Config()).to_record())
        self._recall = Recall(self.block)

    def fill(self, memories: Floats) -> None:
        """Remember float32[n, D], in order."""
        for first in range(0, len(memories), BATCH):
            batch = memories[first : first + BATCH]
            time_ns, morals = self.block.log_time(boot_clock()), np.full(len(batch), ACCEPTED)
            decisions, status = self.store.admit_batch(time_ns, morals, batch, None)
            assert (status, len(decisions)) == (OK, len(batch))

    def nearest(self, query: Floats, k: int) -> list[int]:
        """Return the ids of the k nearest memories, best first."""
        return [match.id for match in self._recall.nearest(query, k, ANY, payloads=False, vectors=False).matches]

    def close(self) -> None:
        """Close the block's descriptor."""
        self.block.close()


def clustered(count: int, dimension: int, queries: int) -> tuple[Floats, Floats]:
    """Return float32[count, D] and float32[queries, D] of unit norm, in the clusters of loadtests/bench/vectors.py.

    Made piece by piece in place, because a million of them are 1.5 GB.
    """
    random = np.random.default_rng([SEED, count, dimension])
    centres = unit(random.standard_normal((CLUSTERS, dimension), np.float32))
    vectors = np.empty((count + queries, dimension), np.float32)
    for first in range(0, len(vectors), BATCH):
        piece = vectors[first : first + BATCH]
        random.standard_normal(out=piece, dtype=np.float32)
        piece *= np.float32(SPREAD / np.sqrt(dimension))
        piece += centres[random.integers(CLUSTERS, size=len(piece))]
        piece /= np.linalg.norm(piece, axis=1, keepdims=True)
    return vectors[:count], vectors[count:]
