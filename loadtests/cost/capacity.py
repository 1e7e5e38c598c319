"""The byte tables of docs/capacity.md, computed from the layout: `python -m loadtests.cost.capacity`.

A test keeps the page equal to this output. Every size comes from shm/layout.py, as in the server: there is no second
formula. The memory of the processes is measured (loadtests/cost/footprint.py) and declared here once as a generous
reserve.
"""

import math
from collections.abc import Iterator
from typing import Final

from app.processes.block_startup import ROWS_PER_WORKER, SHARE_MAX
from core.limits import ANSWERS_SIZE, BODIES_SIZE, PIPELINES_SIZE
from core.settings.config import Config
from shm.layout import KEY_BUCKETS, PEER_BUCKETS, Layout

BUDGET: Final = 1_400_000_000  # bytes: the memory budget of the server
CAPACITY_MAX: Final = 1_000_000  # the largest configurable capacity
# Bytes of arbiter and controller together, and of each worker.
RESERVE_BASE: Final = 50_000_000
RESERVE_WORKER: Final = 20_000_000
# The most that a worker holds for its clients: large bodies, waiting requests, unread answers.
BUFFERS_WORKER: Final = BODIES_SIZE.value + PIPELINES_SIZE.value + ANSWERS_SIZE.value
DIMENSIONS: Final = (384, 768, 1_024, 1_536, 3_072)
PAYLOADS: Final = (0, 1_024, 4_096, 16_384)
_DEFAULT: Final = Config()


def layout(workers: int = 2, **sizes: int) -> Layout:
    """Return the layout of a server with default settings, but for `sizes`."""
    default = Layout(
        _DEFAULT.dimension, _DEFAULT.capacity, _DEFAULT.payload_size_max, _DEFAULT.log_capacity,
        ROWS_PER_WORKER * workers, _DEFAULT.idempotency_capacity,
    )  # fmt: skip
    return default._replace(**sizes)


def slot_bytes(dimension: int, payload_size_max: int) -> int:
    """Return the bytes of one memory."""
    return sum(_slot_strides(dimension, payload_size_max).values())


def _slot_strides(dimension: int, payload_size_max: int) -> dict[str, int]:
    """Return the bytes of one memory in each region that has a share of it."""
    per_slot = ("slots", "codes", "shadow", "vectors", "payloads", "kinds", "members", "links")
    of = layout(dimension=dimension, payload_size_max=payload_size_max)
    return {region.name: region.size // of.slots for region in of.regions() if region.name in per_slot}


def block_max(budget: int, workers: int) -> int:
    """Return the most bytes that a block may have: the processes must fit beside it with all their buffers full, and
    the server must agree to start, which it does when the block takes at most SHARE_MAX of what is free by then.
    """
    free = budget - RESERVE_BASE
    return min(free - workers * (RESERVE_WORKER + BUFFERS_WORKER), math.floor(free * SHARE_MAX))


def room(budget: int, workers: int, **sizes: int) -> int:
    """Return how many memories fit a container limited to `budget` bytes, in thousands; at most CAPACITY_MAX."""
    most, fixed = block_max(budget, workers), layout(workers, capacity=0, **sizes).block_size
    memories = (most - fixed) // slot_bytes(sizes["dimension"], sizes["payload_size_max"])
    memories = max(0, min(CAPACITY_MAX, memories // 1_000 * 1_000))
    while memories and layout(workers, capacity=memories, **sizes).block_size > most:
        memories -= 1_000  # the index grows by powers of two
    return memories


def tables() -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each table, and its lines."""
    yield "a memory", list(_memory())
    yield "a setting", list(_settings())
    yield "blocks", list(_blocks())
    yield "rooms", list(_rooms())
    yield "pods", list(_pods())


def _memory() -> Iterator[str]:
    yield "| of each memory | formula | bytes at 384 floats, 1,024 bytes of payload |"
    yield "|---|---|---:|"
    strides = _slot_strides(_DEFAULT.dimension, _DEFAULT.payload_size_max)
    for name, formula in (
        ("slots", "128"), ("codes", "24"), ("shadow", "dimension, rounded up to 16"),
        ("vectors", "4 × dimension, rounded up to 64"), ("payloads", "payload_size_max, rounded up to 8"),
        ("kinds", "16"), ("members", "256"), ("links", "24"),
    ):  # fmt: skip
        yield f"| {name} | {formula} | {strides[name]:,} |"
    total = slot_bytes(_DEFAULT.dimension, _DEFAULT.payload_size_max)
    yield f"| **a memory** | 448 + 5 × dimension + payload_size_max, and the rounding | **{total:,}** |"


def _settings() -> Iterator[str]:
    yield "| setting | default | bytes for each | bytes at the default |"
    yield "|---|---:|---:|---:|"
    sizes = {region.name: region for region in layout().regions()}
    log, receipts, chains, rows = (sizes[name] for name in ("log", "receipts", "chains", "rows"))
    each = slot_bytes(_DEFAULT.dimension, _DEFAULT.payload_size_max)
    yield f"| capacity | {_DEFAULT.capacity:,} | {each:,} | {each * (_DEFAULT.capacity + 1):,} |"
    yield f"| log_capacity | {_DEFAULT.log_capacity:,} | {log.stride:,} | {log.size:,} |"
    both = receipts.stride + chains.stride
    yield f"| idempotency_capacity | {_DEFAULT.idempotency_capacity:,} | {both:,} | {receipts.size + chains.size:,} |"
    per_worker = ROWS_PER_WORKER * rows.stride
    yield f"| server.workers | 2 | {per_worker:,} | {rows.size:,} |"
    buckets = sizes["keys"].size + sizes["peers"].size
    named = f"token buckets: {KEY_BUCKETS:,} of keys, {PEER_BUCKETS:,} of addresses"
    yield f"| none ({named}) | | {sizes['keys'].stride:,} | {buckets:,} |"
    namespaces = sizes["namespaces"]
    yield f"| none (namespaces: {namespaces.count:,}) | | {namespaces.stride:,} | {namespaces.size:,} |"
    block = layout().block_size
    rings = log.size + receipts.size + chains.size
    counted = each * (_DEFAULT.capacity + 1) + rings + rows.size + buckets + namespaces.size
    yield f"| none (header, lock, state, levels, index, whole pages) | | | {block - counted:,} |"
    yield f"| **the block** | | | **{block:,}** |"


def _blocks() -> Iterator[str]:
    yield "| memories | " + " | ".join(f"{dimension:,} floats" for dimension in DIMENSIONS) + " |"
    yield "|---:" * (len(DIMENSIONS) + 1) + "|"
    for capacity in (20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000):
        cells = (layout(capacity=capacity, dimension=dimension).block_size / 1e6 for dimension in DIMENSIONS)
        yield f"| {capacity:,} | " + " | ".join(f"{size:,.0f}" for size in cells) + " |"


def _rooms() -> Iterator[str]:
    yield "| payload_size_max | " + " | ".join(f"{dimension:,} floats" for dimension in DIMENSIONS) + " |"
    yield "|---:" * (len(DIMENSIONS) + 1) + "|"
    for payload in PAYLOADS:
        cells = (room(BUDGET, 2, dimension=dimension, payload_size_max=payload) for dimension in DIMENSIONS)
        yield f"| {payload:,} | " + " | ".join(f"{memories:,}" for memories in cells) + " |"


def _pods() -> Iterator[str]:
    yield "| workers | memories | floats | block, MB | processes, MB | usual, MB | buffers, MB | at most, MB |"
    yield "|---:" * 8 + "|"
    for workers, capacity, dimension in ((1, 20_000, 384), (2, 20_000, 384), (4, 20_000, 384), (2, 100_000, 768)):
        block = layout(workers, capacity=capacity, dimension=dimension).block_size
        processes, buffers = RESERVE_BASE + workers * RESERVE_WORKER, workers * BUFFERS_WORKER
        sizes = (block, processes, block + processes, buffers, block + processes + buffers)
        cells = " | ".join(f"{size / 1e6:,.0f}" for size in sizes)
        yield f"| {workers} | {capacity:,} | {dimension:,} | {cells} |"


if __name__ == "__main__":
    for title, lines in tables():
        print(f"{title}\n")
        print("\n".join(lines) + "\n")
