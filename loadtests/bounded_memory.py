"""Memory of the whole service while events pass: proportional (PSS), summed over all its processes.

    python -m loadtests.bounded_memory
    python -m loadtests.bounded_memory --events 10000000

Starts a server of this checkout with two workers at 20,000 × 384 and sends events that are all accepted, 96 of 100 in
batches of 100 and the rest alone, over eight connections. PSS counts a shared page once, divided among those who map
it.

Exit status: 0 when the service stays under the bound and does not grow between the middle and the end, else 1.
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from loadtests.live import LiveServer

BOUND_MB: Final = 150.0
GROWTH_MB_MAX: Final = 1.0  # from the middle on: buffers have grown to the largest batch by then
STEPS: Final = 10
CONNECTIONS: Final = 4  # of each kind
BATCH: Final = 100
DIMENSION: Final = 384


def main() -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure the service's memory while events pass.")
    parser.add_argument("--events", type=int, default=1_000_000, help="events to send (default 1,000,000)")
    events: int = parser.parse_args().events
    with tempfile.TemporaryDirectory() as directory:
        sizes = {"WORKERS": "2", "MLSDM_DIMENSION": str(DIMENSION), "MLSDM_CAPACITY": "20000"}
        server = LiveServer(Path(directory), sizes).start()
        try:
            return measure(server, events)
        finally:
            server.stop()


def measure(server: LiveServer, events: int) -> int:
    """Send the events in steps and print the table."""
    vectors = np.random.default_rng(1).standard_normal((BATCH, DIMENSION)).astype("<f4")
    body = np.full(BATCH, 0.95).astype("<f8").tobytes() + vectors.tobytes()
    alone = events // STEPS // CONNECTIONS * 4 // 100
    batches = (events // STEPS // CONNECTIONS - alone) // BATCH

    def send_batches() -> None:
        connection = server.connect()
        for _ in range(batches):
            answer = server.request("POST", "/events", body, {"Content-Type": "application/octet-stream"}, connection)
            assert answer.status == 200, answer.body
        connection.close()

    def send_alone() -> None:
        connection = server.connect()
        for number in range(alone):
            server.event(vectors[number % BATCH], 0.95, connection)
        connection.close()

    print(f"{'events':>12} {'memories':>9} {'PSS, MB':>8}")
    sizes = []
    for step in range(STEPS + 1):
        if step:
            threads = [threading.Thread(target=work) for work in (send_batches, send_alone) for _ in range(CONNECTIONS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        state = server.state()
        sizes.append(proportional_mb(server))
        print(f"{state['total_events_processed']:>12,} {state['memory_used']:>9,} {sizes[-1]:>8.1f}", flush=True)
    bounded = max(sizes) < BOUND_MB and sizes[-1] - sizes[STEPS // 2] < GROWTH_MB_MAX
    print("bounded" if bounded else f"NOT bounded: over {BOUND_MB:g} MB, or still growing")
    return 0 if bounded else 1


def proportional_mb(server: LiveServer) -> float:
    """Return the service's PSS in MB: of what several processes map, each one's part."""
    return _sum_mb(server, "Pss")


def written_mb(server: LiveServer) -> float:
    """Return what the service's processes have written and share with nobody, in MB.

    It grows with the service alone; PSS grows, too, when other servers of this machine end, which shared its libraries.
    """
    return _sum_mb(server, "Private_Dirty")


def _sum_mb(server: LiveServer, name: str) -> float:
    """Return the sum of a line of smaps_rollup over all processes of the service."""
    arbiter = psutil.Process(server.pid)
    kilobytes = 0
    for member in [arbiter, *arbiter.children(recursive=True)]:
        lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    return kilobytes * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
