"""How the arbiter gets the shared block: it creates one at a start, and adopts the old arbiter's at an upgrade (USR2).

Invariants: a block that would take more than SHARE_MAX of the available memory is not created. An adopted block has the
layout that the configuration asks for, but keeps its number of worker rows.
"""

import logging
import time
from pathlib import Path
from typing import Final

from core.clock import boot_clock
from core.machine import host
from core.machine.cgroup import Cgroup
from core.settings.config import Config
from shm.block import Block, BlockError, BlockIdentity
from shm.layout import Layout

ROWS_PER_WORKER: Final = 4  # old and new workers overlap at a reload, twice at an upgrade
SHARE_MAX: Final = 0.8  # of the available memory that the block may take: processes and page tables need the rest

log = logging.getLogger("mlsdm.server")


def create_block(config: Config, workers: int) -> Block:
    """Create the block.

    Raises BlockError when it would take more than SHARE_MAX of the memory that the container or the machine has left.
    """
    layout = _layout(config, ROWS_PER_WORKER * workers)
    room = Cgroup(Path("/")).tightest_memory_limit()
    available = host.memory().available
    if room is not None:
        available = min(available, room.available)
    if layout.block_size > available * SHARE_MAX:
        raise BlockError(
            f"the block needs {layout.block_size / 1e6:.0f} MB and may take {SHARE_MAX:.0%} of the "
            f"{available / 1e6:.0f} MB of memory that are left: "
            "lower `capacity`, `dimension`, `payload_size_max` or `log_capacity`, or give it more memory"
        )
    return Block.create(layout, BlockIdentity.new(), time.time_ns(), boot_clock())


def adopt_block(fd: int, config: Config) -> Block:
    """Map the block of the arbiter that this one replaces.

    Raises BlockError when it is not valid, or has a layout for another configuration.
    """
    block = Block.open(fd, writable=True)
    wanted = _layout(config, block.layout.rows)
    if block.layout != wanted:
        raise BlockError(
            f"the running block has {block.layout}, the configuration wants {wanted}: restart instead of USR2"
        )
    log.info("adopted the block of boot %s, log %s", block.boot_id, block.log_id)
    return block


def _layout(config: Config, rows: int) -> Layout:
    return Layout(
        config.dimension, config.capacity, config.payload_size_max, config.log_capacity, rows,
        config.idempotency_capacity,
    )  # fmt: skip
