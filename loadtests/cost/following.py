"""What a follower costs the writers of a block, and how fast a second block can be fed.

    python -m loadtests.cost.following              prints a table; no server is started

One process admits events, alone and while a follower reads them, in turn. Then entries are read by a follower, and
applied to a second block. A quarter of the events is rejected. All times are processor time, so that other processes do
not count. The figures are medians of rounds; the range is that of all rounds.
"""

import argparse
import os
import statistics
import time
from typing import Final

import numpy as np

from core.follower import Cursor, Followed, Follower
from core.regime import Regime
from core.settings.config import Config
from shm.block import Block, BlockIdentity
from shm.layout import NO_ROW, Layout
from shm.store import Content, Store
from testing.block_fixture import begin, end

LAYOUT: Final = Layout(384, 20_000, 1024, 65_536, 4, 32_768)
EVENTS: Final = 16_000  # in a round; their contents are still there when it ends

PAYLOAD: Final = b"x" * 256
TIME_NS: Final = 1_700_000_000_000_000_000


class Writer:
    """Admits events to a block from this process."""

    def __init__(self, block: Block) -> None:
        block.bind(os.getpid(), 0, 2000, 1e6)
        self.store = Store(block)
        vectors = np.random.default_rng(1).standard_normal((512, LAYOUT.dimension)).astype(np.float32)
        self.vectors = [vector.tobytes() for vector in vectors]

    def seconds_of(self, count: int) -> float:
        """Return the seconds that `count` events take."""
        admit, vectors = self.store.admit, self.vectors
        began = time.process_time()
        for number in range(count):
            admit(TIME_NS, 0.1 if number % 4 == 3 else 0.95, vectors[number % 512], PAYLOAD)
        return time.process_time() - began


def block_of(identity: BlockIdentity) -> Block:
    """Create a block."""
    block = Block.create(LAYOUT, identity, TIME_NS, 0)
    block.bind(os.getpid(), NO_ROW, 2000, 1e6)
    return block


def keep_reading(block: Block) -> None:
    """Follow a block for ever, and drop what is read."""
    block.restrict(readable=True)
    block.map.wait_ms = 0
    follower = Follower(block, Cursor(block.log_id, block.position))
    while True:
        follower.read()
        follower.wait(1)


def follow(first: Block, second: Store) -> tuple[float, float]:
    """Apply what a second block does not have, by batches; return the seconds of reading and of applying."""
    follower, log_id = Follower(first, Cursor(first.log_id, second.block.position)), first.log_id
    reading = applying = 0.0
    while True:
        began = time.process_time()
        batch = follower.read()
        read = time.process_time()
        if not batch:
            return reading, applying
        for item in batch:
            assert isinstance(item, Followed)
            second.apply(log_id, item.entry, item.content if isinstance(item.content, Content) else None)
        reading, applying = reading + read - began, applying + time.process_time() - read


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per event or entry of each step, by round."""
    identity = BlockIdentity.new()
    first = block_of(identity)
    second = block_of(identity._replace(boot_id=os.urandom(16)))
    writer, applier = Writer(first), Store(second)
    writer.store.begin_epoch(TIME_NS, Regime.of(Config()).to_record())
    figures: dict[str, list[float]] = {
        "admit": [], "admit while it is followed": [], "read": [], "apply": [],
    }  # fmt: skip
    for turn in range(2 + 2 * rounds):
        reader = begin(lambda: keep_reading(first)) if turn % 2 else 0
        seconds = writer.seconds_of(EVENTS)
        if reader:
            end(reader)
        reading, applying = follow(first, applier)
        assert second.position == first.position
        if turn >= 2:  # the stores are full by then
            for name, found in (
                ("admit while it is followed" if reader else "admit", seconds), ("read", reading), ("apply", applying),
            ):  # fmt: skip
                figures[name].append(found / EVENTS * 1e6)
    return figures


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of 16,000 events each way (default 10)")
    figures = measure(parser.parse_args().rounds)
    print("| step | µs of processor time an event | range | a second |\n|---|---:|---:|---:|")
    for name, found in figures.items():
        median = statistics.median(found)
        print(f"| {name} | {median:.2f} | {min(found):.2f} – {max(found):.2f} | {1e6 / median:,.0f} |")
    both = statistics.median(figures["read"]) + statistics.median(figures["apply"])
    print(f"| read and apply | {both:.2f} | | {1e6 / both:,.0f} |")


if __name__ == "__main__":
    main()
