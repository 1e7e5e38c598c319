"""Memory of the whole server while a million events pass: each page counted once.

    python -m loadtests.cost.bounded_memory
    python -m loadtests.cost.bounded_memory --events 10000000 --batch 1000

A server with two workers at 20,000 × 384 gets events that are all accepted, 96 % of them in batches, over eight
connections. `loadtests.cost.process_memory` explains what is counted, and why it is not PSS.

Exit status: 0 when the server stays below the bound and does not grow in the second half, else 1.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np

from app.httpd.heap_trim import TRIM_INTERVAL_SECONDS
from loadtests.cost.process_memory import footprint
from testing.live_server import LiveServer

# 170 MB of proportional memory, and 5 MB of libc, libcrypto and their like: they are counted in full here, and are
# shared with other programs on most machines.
BOUND_MB: Final = 170.0 + 5.0
GROWTH_MB_MAX: Final = 1.0  # from the middle on: buffers have grown to the largest batch by then
STEPS: Final = 10
CONNECTIONS: Final = 4  # of each kind
DIMENSION: Final = 384


def main() -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure the server's memory while events pass.")
    parser.add_argument("--events", type=int, default=1_000_000, help="events to send (default 1,000,000)")
    parser.add_argument("--batch", type=int, default=100, help="events in a batch, up to 1,000 (default 100)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sizes = {"WORKERS": "2", "MLSDM_DIMENSION": str(DIMENSION), "MLSDM_CAPACITY": "20000"}
        server = LiveServer(Path(directory), sizes).start()
        try:
            return measure(server, args.events, args.batch)
        finally:
            server.stop()


def measure(server: LiveServer, events: int, batch: int) -> int:
    """Send the events in steps and print the table."""
    vectors = np.random.default_rng(1).standard_normal((batch, DIMENSION)).astype("<f4")
    body = np.full(batch, 0.95).astype("<f8").tobytes() + vectors.tobytes()
    alone = events // STEPS // CONNECTIONS * 4 // 100
    batches = (events // STEPS // CONNECTIONS - alone) // batch

    def send_batches() -> None:
        connection = server.connect()
        for _ in range(batches):
            answer = server.request("POST", "/events", body, {"Content-Type": "application/octet-stream"}, connection)
            assert answer.status in {200, 503}, answer.body
        connection.close()

    def send_alone() -> None:
        connection = server.connect()
        for number in range(alone):
            server.event(vectors[number % batch], 0.95, connection)
        connection.close()

    print(f"{'events':>12} {'memories':>9} {'own, MB':>8} {'files, MB':>10} {'block, MB':>10} {'total, MB':>10}")
    sizes = []
    for step in range(STEPS + 1):
        if step:
            threads = [threading.Thread(target=work) for work in (send_batches, send_alone) for _ in range(CONNECTIONS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        time.sleep(2 * TRIM_INTERVAL_SECONDS)  # until freed memory has been returned
        state, found = server.state(), footprint(server.pid)
        sizes.append(found.total)
        print(
            f"{state['total_events_processed']:>12,} {state['memory_used']:>9,} {found.own:>8.1f} {found.files:>10.1f} "
            f"{found.block:>10.1f} {found.total:>10.1f}",
            flush=True,
        )
    bounded = max(sizes) < BOUND_MB and sizes[-1] - sizes[STEPS // 2] < GROWTH_MB_MAX
    print("bounded" if bounded else f"NOT bounded: over {BOUND_MB:g} MB, or still growing")
    return 0 if bounded else 1


if __name__ == "__main__":
    sys.exit(main())
