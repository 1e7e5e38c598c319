"""What requests that wait for a deferred answer cost the events that are served meanwhile.

    python -m loadtests.cost.deferred
    python -m loadtests.cost.deferred --check

One worker. One client sends events, one after the other, in phases that alternate: `quiet`, without other connections;
`idle`, beside WAITING connections that ask nothing; `waiting`, beside as many, each with a request whose answer is
deferred. The phase `idle` separates the cost of connections from the cost of waiting. CPU is the worker's, per event.

With --check the exit status is 1 when the median p99 of `waiting` is more than RATIO_MAX times that of `quiet`.
"""

import argparse
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import LiveServer

RATIO_MAX: Final = 1.05
ROUNDS: Final = 6
PHASE_SECONDS: Final = 2.0
WAITING: Final = 5_000
DIMENSION: Final = 384
JSON: Final = {"Content-Type": "application/json"}
REQUEST: Final = (
    b"POST /later/%d HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)


def main() -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure events while other requests wait for deferred answers.")
    parser.add_argument("--check", action="store_true", help=f"fail when the ratio is above {RATIO_MAX}")
    check: bool = parser.parse_args().check
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    environ = {
        "WORKERS": "1",
        "MLSDM_DIMENSION": str(DIMENSION),
        "MLSDM_SERVER__CONNECTIONS_MAX": str(WAITING + 100),
        "MLSDM_SERVER__DEFERRED_MAX": str(WAITING + 100),
        "MLSDM_SECURITY__RATE_LIMITING__ENABLED": "false",
        "TIMEOUT_SECONDS": "600",
    }
    with tempfile.TemporaryDirectory() as directory:
        server = LiveServer(Path(directory), environ, application="testing.deferred_app:app").start()
        try:
            return measure(server, check)
        finally:
            server.stop()


def measure(server: LiveServer, check: bool) -> int:
    """Alternate the phases and print the table."""
    worker = psutil.Process(server.workers(server.block())[0])
    run_events(server, worker)  # warm
    print("| phase | p50 µs | p99 µs | CPU µs per event |\n|---|---|---|---|")
    found: dict[str, list[tuple[float, float, float]]] = {"quiet": [], "idle": [], "waiting": []}
    memory: list[float] = []
    for _ in range(ROUNDS):
        for phase, results in found.items():
            clients = [] if phase == "quiet" else open_connections(server)
            if phase == "waiting":
                before = worker.memory_info().rss
                ask(server, clients)
                memory.append((worker.memory_info().rss - before) / WAITING)
            results.append(run_events(server, worker))
            if phase == "waiting":
                release(server, clients)
            for client in clients:
                client.close()
    medians = {phase: np.median(results, axis=0) for phase, results in found.items()}
    for phase, (p50, p99, cpu) in medians.items():
        print(f"| {phase} | {p50:,.0f} | {p99:,.0f} | {cpu:,.1f} |")
    ratio = float(medians["waiting"][1] / medians["quiet"][1])
    print(f"memory per waiting request, first round: {memory[0]:,.0f} bytes")
    for phase in ("idle", "waiting"):
        p50, p99, cpu = medians[phase] / medians["quiet"]
        print(f"{phase} ÷ quiet, medians of {ROUNDS}: p50 {p50:.3f}, p99 {p99:.3f}, CPU {cpu:.3f}")
    print(f"p99 waiting ÷ quiet: {ratio:.3f} (at most {RATIO_MAX} is promised)")
    return 1 if check and ratio > RATIO_MAX else 0


def run_events(server: LiveServer, worker: psutil.Process) -> tuple[float, float, float]:
    """Send events one after the other for a phase; return p50 and p99 in µs, and CPU per event in µs."""
    connection = server.connect()
    vector = np.random.default_rng(1).standard_normal(DIMENSION).astype("<f4").tobytes()
    headers = {"Content-Type": "application/octet-stream", "Moral-Value": "0.8"}
    latencies = []
    used = sum(worker.cpu_times()[:2])
    end = time.perf_counter() + PHASE_SECONDS
    while (began := time.perf_counter()) < end:
        answer = server.request("POST", "/event", vector, headers, connection)
        latencies.append((time.perf_counter() - began) * 1e6)
        assert answer.status == 200, answer.body
    used = sum(worker.cpu_times()[:2]) - used
    connection.close()
    p50, p99 = np.percentile(latencies, (50, 99))
    return float(p50), float(p99), used / len(latencies) * 1e6


def open_connections(server: LiveServer) -> list[socket.socket]:
    """Return WAITING connections."""
    clients = [socket.create_connection(("127.0.0.1", server.port), HANG_SECONDS) for _ in range(WAITING)]
    time.sleep(0.5)
    return clients


def ask(server: LiveServer, clients: list[socket.socket]) -> None:
    """Send a request on each connection, and wait until all wait for their answers."""
    for number, client in enumerate(clients):
        client.sendall(REQUEST % number)
    eventually(lambda: count_waiting(server) == WAITING)


def count_waiting(server: LiveServer) -> int:
    """Return how many requests wait for their answers."""
    return len(server.get("/later/state").json["waiting"])


def release(server: LiveServer, clients: list[socket.socket]) -> None:
    """Have all requests answered, and read the answers."""
    assert server.request("POST", "/later/release", b"{}", JSON).status == 200
    for client in clients:
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    sys.exit(main())
