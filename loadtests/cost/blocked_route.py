"""Latency of events while governor commands wait for a stopped controller.

    python -m loadtests.cost.blocked_route
    python -m loadtests.cost.blocked_route --check

One worker serves both kinds of requests. In the blocked phases the controller is stopped (SIGSTOP) most of the time,
and more clients than the pool has threads send governor commands, each of which waits up to a second there. One client
sends events meanwhile. Quiet and blocked phases alternate, so that a slower machine slows both.

With --check the exit status is 1 when the median p99 of the blocked phases is more than twice that of the quiet ones.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np

from testing.live_server import LiveServer

RATIO_MAX: Final = 2.0
ROUNDS: Final = 5
PHASE_SECONDS: Final = 3.0
ASKING: Final = 6  # clients of governor commands; the pool has two threads
STOPPED_SECONDS: Final = 0.7  # less than the silence after which the arbiter replaces a controller
DIMENSION: Final = 384


def main() -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure events while governor commands are blocked.")
    parser.add_argument("--check", action="store_true", help=f"fail when the ratio is above {RATIO_MAX}")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as directory:
        server = LiveServer(Path(directory), {"WORKERS": "1", "MLSDM_DIMENSION": str(DIMENSION)}).start()
        try:
            return measure(server, check)
        finally:
            server.stop()


def measure(server: LiveServer, check: bool) -> int:
    """Alternate the phases and print the table."""
    print("| phase | events | p50 µs | p99 µs | commands answered |\n|---|---|---|---|---|")
    tails: dict[str, list[float]] = {"quiet": [], "blocked": []}
    for _ in range(ROUNDS):
        for phase, found in tails.items():
            over = threading.Event()
            commands = BlockedCommands(server, over) if phase == "blocked" else None
            latencies = events(server)
            over.set()
            answered = commands.join() if commands else 0
            p50, p99 = np.percentile(latencies, (50, 99))
            found.append(float(p99))
            print(f"| {phase} | {len(latencies):,} | {p50:,.0f} | {p99:,.0f} | {answered} |", flush=True)
    ratio = statistics.median(tails["blocked"]) / statistics.median(tails["quiet"])
    print(f"\np99 blocked ÷ p99 quiet, medians of {ROUNDS}: {ratio:.2f} (at most {RATIO_MAX} is promised)")
    return 1 if check and ratio > RATIO_MAX else 0


def events(server: LiveServer) -> list[float]:
    """Send events one after the other for a phase; return their latencies in µs."""
    connection = server.connect()
    vector = np.random.default_rng(1).standard_normal(DIMENSION).astype("<f4").tobytes()
    headers = {"Content-Type": "application/octet-stream", "Moral-Value": "0.8"}
    latencies = []
    end = time.perf_counter() + PHASE_SECONDS
    while (began := time.perf_counter()) < end:
        answer = server.request("POST", "/event", vector, headers, connection)
        latencies.append((time.perf_counter() - began) * 1e6)
        assert answer.status == 200, answer.body
    connection.close()
    return latencies


class BlockedCommands:
    """Stops the controller again and again, and asks for changes that wait for it, until `over`."""

    def __init__(self, server: LiveServer, over: threading.Event) -> None:
        self._server = server
        self._over = over
        self._answered = 0
        self._threads = [threading.Thread(target=self._stop)]
        self._threads += [threading.Thread(target=self._ask, args=(number,)) for number in range(ASKING)]
        for thread in self._threads:
            thread.start()

    def join(self) -> int:
        """Wait for the end; returns how many commands were answered, carried out or not."""
        for thread in self._threads:
            thread.join()
        return self._answered

    def _stop(self) -> None:
        block = self._server.block()
        while not self._over.is_set():
            pid = self._server.controller(block)
            os.kill(pid, signal.SIGSTOP)
            self._over.wait(STOPPED_SECONDS)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)

    def _ask(self, number: int) -> None:
        connection = self._server.connect()
        while not self._over.is_set():
            change = json.dumps({"moral_filter": {"dead_band": number / 100}}).encode()
            answer = self._server.request(
                "PATCH", "/governor", change, {"Content-Type": "application/json"}, connection
            )
            assert answer.status in (200, 503), answer.body
            self._answered += 1
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
