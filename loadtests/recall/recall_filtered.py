"""What filters cost: recalls of one store in this process, with and without a filter, in turns.

    python -m loadtests.recall.recall_filtered
    python -m loadtests.recall.recall_filtered --rounds 5 --members 16

20,000 memories of 384 dimensions have metadata: a number that tells each from the others, a user of a hundred, a flag,
and as many more members as are asked for. Each round asks every query once for each filter, in a new order, so that
what disturbs the machine disturbs all filters equally. The table has medians over the rounds, and the median of the
ratio to the unfiltered recall of the same round.

Exit status: 1 with --check when a filter takes more than 1.5 times as long as no filter.
"""

import argparse
import random
import statistics
import sys
import time
from typing import Final

from core.clock import boot_clock
from core.reference.filter_words import Condition, Filter
from loadtests.bench import report
from loadtests.curves.native_store import ANY, NativeStore, clustered
from shm.event import Event
from shm.filters import CompiledFilter
from shm.metadata import MetadataEncoder, Scalar, hash_of
from shm.recall import Recall

MEMORIES: Final = 20_000
DIMENSION: Final = 384
QUERIES: Final = 32
TOP_K: Final = 10
ROUNDS: Final = 41
RATIO_MAX: Final = 1.5


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.recall.recall_filtered", description="Filtered recall.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds (default {ROUNDS})")
    parser.add_argument("--members", type=int, default=3, help="members of each memory's metadata, 3 to 16 (default 3)")
    parser.add_argument("--check", action="store_true", help=f"fail above {RATIO_MAX} times the time without a filter")
    args = parser.parse_args(arguments)
    memories, queries = clustered(MEMORIES, DIMENSION, QUERIES)
    store = NativeStore(DIMENSION, MEMORIES, 1024)
    encoder = MetadataEncoder(hash_of(store.block.secret))
    for number, vector in enumerate(memories):
        metadata: dict[str, Scalar] = {"number": number, "user": f"user {number % 100}", "even": number % 2 == 0}
        metadata |= {f"other {i}": i for i in range(args.members - 3)}
        event = Event(1.0, vector, metadata=encoder.encode(metadata))
        store.store.admit_event(store.block.log_time(boot_clock()), event)
    filters = {
        "none": None,
        "all match: number ≥ 0": Filter(all=(Condition("metadata.number", (("gte", 0),)),)),
        "half match: even": Filter(all=(Condition("metadata.even", (("eq", True),)),)),
        "1 of 100 matches: user": Filter(all=(Condition("metadata.user", (("eq", "user 7"),)),)),
        "1 of 20,000 matches: number": Filter(all=(Condition("metadata.number", (("eq", 777),)),)),
        "none matches: no such member": Filter(all=(Condition("metadata.missing", (("exists", True),)),)),
        "all match: no such member": Filter(none=(Condition("metadata.missing", (("exists", True),)),)),
        "half match: memory_id": Filter(all=(Condition("memory_id", (("gt", MEMORIES // 2),)),)),
        "two users of 100, and even": Filter(
            all=(
                Condition("metadata.user", (("in", ("user 8", "user 9")),)),
                Condition("metadata.even", (("eq", True),)),
            )
        ),
    }
    compiled = {
        name: CompiledFilter(one, encoder.hashed, lambda _: []) if one else None for name, one in filters.items()
    }
    recall = Recall(store.block)
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(args.rounds):
        for name in random.sample(list(compiled), len(compiled)):
            started = time.perf_counter()
            for query in queries:
                recall.nearest(query, TOP_K, ANY, payloads=False, vectors=False, condition=compiled[name])
            times[name].append((time.perf_counter() - started) / len(queries) * 1e6)
    print(f"{report.machine()}\n\n| filter | µs | of no filter |\n|---|---:|---:|")
    worst = 0.0
    for name, taken in times.items():
        ratio = statistics.median(one / other for one, other in zip(taken, times["none"], strict=True))
        worst = max(worst, ratio)
        print(f"| {name} | {statistics.median(taken):.0f} | {ratio:.2f} |")
    store.close()
    return int(args.check and worst > RATIO_MAX)


if __name__ == "__main__":
    sys.exit(main())
