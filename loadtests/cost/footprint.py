"""Memory besides the block, by number of workers.

    python -m loadtests.cost.footprint --workers 1 2 4

For each number of workers it runs a server with default settings and measures the memory of all its processes besides
the block (`loadtests.cost.process_memory`): after the start, after events and recalls on many connections, and with a
thousand idle connections. docs/capacity.md and the reserve in loadtests/cost/capacity.py use the differences.

Exit status: 0, or 1 when a figure exceeds the reserve.
"""

import argparse
import http.client
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from loadtests.bench import report
from loadtests.cost import process_memory
from loadtests.cost.capacity import RESERVE_BASE, RESERVE_WORKER
from testing.live_server import LiveServer

CONNECTIONS: Final = 1_000
CLIENTS: Final = 16
BATCHES: Final = 50  # for each client
BATCH: Final = 100
RECALLS: Final = 50
DIMENSION: Final = 384
_RAW: Final = {"Content-Type": "application/octet-stream"}


class WorkerMemory(NamedTuple):
    """MB besides the block: after the start, after work, and with CONNECTIONS idle connections."""

    started: float
    worked: float
    connected: float


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cost.footprint", description="Measure memory by workers."
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers (default 1 2 4)")
    args = parser.parse_args(arguments)
    columns = ("workers", "started, MB", "after work, MB", f"{CONNECTIONS:,} connections, MB", "reserve, MB")
    print(f"{report.machine()}\n\n| " + " | ".join(columns) + " |")
    print("|---:" * 5 + "|")
    held = True
    for workers in args.workers:
        found, reserve = footprint(workers), (RESERVE_BASE + workers * RESERVE_WORKER) / 1e6
        held &= max(found) <= reserve
        cells = " | ".join(f"{size:.1f}" for size in found)
        print(f"| {workers} | {cells} | {reserve:.0f} |", flush=True)
    print("\nwithin the reserve" if held else "\nNOT within the reserve of capacity planning")
    return 0 if held else 1


def footprint(workers: int) -> WorkerMemory:
    """Measure a server with `workers` workers."""
    with tempfile.TemporaryDirectory(prefix="mlsdm-footprint-") as name:
        server = LiveServer(Path(name), {"WORKERS": str(workers), "MLSDM_RESOURCES__DRAIN_PERIOD": "0"}).start()
        try:
            started = besides_block_mb(server)
            send_work(server)
            worked = besides_block_mb(server)
            idle = [server.connect() for _ in range(CONNECTIONS)]
            for connection in idle:
                server.request("GET", "/livez", connection=connection)
            connected = besides_block_mb(server)
            for connection in idle:
                connection.close()
        finally:
            server.stop()
    return WorkerMemory(started, worked, connected)


def besides_block_mb(server: LiveServer) -> float:
    """Return a server's memory besides the block in MB, an upper bound (loadtests/cost/process_memory.py)."""
    found = process_memory.footprint(server.pid)
    return found.own + found.files


def send_work(server: LiveServer) -> None:
    """Send batches and recalls from several clients at once."""
    vectors = np.random.default_rng(1).standard_normal((BATCH, DIMENSION)).astype("<f4")
    body = np.full(BATCH, 0.95).astype("<f8").tobytes() + vectors.tobytes()

    def client(connection: http.client.HTTPConnection) -> None:
        for path, sent, times in (("/events", body, BATCHES), ("/recall", vectors[0].tobytes(), RECALLS)):
            for _ in range(times):
                answer = server.request("POST", path, sent, _RAW, connection)
                assert answer.status in (200, 503), answer.body  # 503: on a full machine a lock may take too long

    connections = [server.connect() for _ in range(CLIENTS)]
    threads = [threading.Thread(target=client, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
