"""Torn reads: one process writes at full speed, others read what is about to be overwritten, ten million times.

The block has so few slots that a memory is overwritten microseconds after it was read. Event n has n in its moral
value, every float of its vector and every byte of its payload, so a read that mixes two memories is recognised.
Readers ask for the oldest ids. A memory that was evicted before it was copied is Gone, which is correct.
"""

import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

import numpy as np

from core.clock import boot_clock
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.regime import Regime
from core.settings.config import Config
from loadtests.faults.fault import FaultOptions, Outcome
from shm import process
from shm.block import Block, BlockIdentity
from shm.errors import Gone
from shm.layout import NO_ROW, Layout
from shm.store import Store

READS: Final = 10_000_000
READERS: Final = 2
LAYOUT: Final = Layout(dimension=384, capacity=8, payload_size_max=1024, log_capacity=1024, rows=1, receipt_capacity=16)
CYCLE: Final = 1000  # events that differ
_COUNTS: Final = struct.Struct("<3Q")  # whole, gone, torn

Event = tuple[float, bytes, bytes]


def torn_reads(options: FaultOptions) -> Outcome:
    """Read memories that are being overwritten; no read may be torn."""
    block = Block.create(LAYOUT, BlockIdentity.new(), time.time_ns(), boot_clock())
    _bind(block, NO_ROW)
    Store(block).begin_epoch(block.log_time(boot_clock()), Regime.of(Config()).to_record())
    reads = -(-options.scaled(READS) // READERS)
    counts = mmap.mmap(-1, READERS * _COUNTS.size)
    writer = _fork(lambda: _write(block))
    try:
        readers = [_fork(lambda at=at: _read(block, reads, counts, at)) for at in range(READERS)]  # type: ignore[misc]  # early binding
        failed = [pid for pid in readers if os.waitpid(pid, 0)[1]]
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    whole, gone, torn = (sum(column) for column in zip(*_COUNTS.iter_unpack(counts[:]), strict=True))
    written = block.position - 1
    block.close()
    broken = [f"{torn} reads gave out a memory that is not whole"] if torn else []
    if failed:
        broken.append(f"{len(failed)} of {READERS} readers ended with an error")
    if not whole:
        broken.append(f"no read of {gone} came in time: nothing was proven")
    return Outcome(whole + gone + torn, {"whole": whole, "gone": gone, "torn": torn, "written": written}, broken)


def _events() -> list[Event]:
    """Return moral value, vector and payload of the events of one cycle. No threshold rejects them."""
    return [
        (
            0.9 + n / (10 * CYCLE),
            np.full(LAYOUT.dimension, n + 1, np.float32).tobytes(),
            (n + 1).to_bytes(2, "little") * (LAYOUT.payload_size_max // 2),
        )
        for n in range(CYCLE)
    ]


def _write(block: Block) -> None:
    _bind(block, 0)
    store, events = Store(block), _events()
    while True:
        for moral, vector, payload in events:
            store.admit(block.log_time(boot_clock()), moral, vector, payload)


def _read(block: Block, reads: int, counts: mmap.mmap, at: int) -> None:
    """Read the three oldest ids in turn; memory n is event n − 1, and position n + 1 admitted it."""
    _bind(block, NO_ROW)
    store, events = Store(block), _events()
    while block.position <= LAYOUT.capacity:
        time.sleep(0.001)
    whole = gone = torn = 0
    for number in range(reads):
        memory_id = block.position - LAYOUT.capacity + number % 3
        try:
            memory = store.memory(memory_id)
        except Gone:
            gone += 1
            continue
        read = (memory.moral, memory.vector, memory.payload)
        if read == events[(memory_id - 1) % CYCLE] and (memory.id, memory.position) == (memory_id, memory_id + 1):
            whole += 1
        else:
            torn += 1
    _COUNTS.pack_into(counts, at * _COUNTS.size, whole, gone, torn)


def _bind(block: Block, row: int) -> None:
    block.bind(os.getpid(), row, LOCK_WAIT_MILLISECONDS.value, VECTOR_NORM.value)


def _fork(work: Callable[[], object]) -> int:
    """Fork a child that does `work`; it ends with 1 when that raises, and does not outlive this process."""
    sys.stdout.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    try:
        process.die_with_parent(parent)
        work()
    except BaseException:  # noqa: BLE001 - a child must never return into its parent's program
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
