"""Latency of honest clients and memory of the server, alternately quiet and under attack.

    python -m loadtests.attack.hostile_clients
    python -m loadtests.attack.hostile_clients --attack greedy
    python -m loadtests.attack.hostile_clients --check

A server with two workers serves 8 honest clients at a steady pace (`loadtests.attack.steady_client`). In every other
phase hostile clients (`loadtests.attack.attackers`) hold connections: 5,000 slow ones, or 600 greedy ones.
Disconnected attackers come back. All programs share the machine, so the attackers' CPU use is printed too.

With --check the exit status is 1 when the median p99 under attack exceeds RATIOS_MAX times the quiet one (2 for slow
clients; 10 for greedy ones, which keep both workers busy), when an honest request failed, or when memory grew by more
than MEMORY_MB_MAX.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from loadtests.cost.process_memory import footprint
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer

RATIOS_MAX: Final = {"slow": 2.0, "greedy": 10.0}
KINDS: Final = {"slow": ("head", "body", "read"), "greedy": ("greedy",)}
COUNTS: Final = {"slow": 5_000, "greedy": 600}
# Per worker 32 MB of unread answers and as much while they are joined; 5,000 connections of 5 kB; rounded up.
MEMORY_MB_MAX: Final = 200.0
ROUNDS: Final = 3
STEADY_CLIENTS: Final = 8
DIMENSION: Final = 384


class Phase(NamedTuple):
    """The measurements of one phase; latencies in milliseconds, memory in MB."""

    attacked: bool
    requests: int
    p50: float
    p99: float
    worst: float
    memory: float
    failures: dict[str, int]


def main() -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure honest clients while hostile ones are connected.")
    parser.add_argument(
        "--attack", choices=tuple(KINDS), default="slow", help="behaviour of the attackers (default slow)"
    )
    parser.add_argument("--clients", type=int, help="number of attackers (default 5,000 slow or 600 greedy)")
    parser.add_argument("--seconds", type=int, default=12, help="length of each phase (default 12)")
    parser.add_argument("--check", action="store_true", help="fail when a bound is exceeded")
    options = parser.parse_args()
    count = options.clients or COUNTS[options.attack]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as directory:
        settings = {"WORKERS": "2", "MLSDM_DIMENSION": str(DIMENSION)}
        settings["MLSDM_SERVER__CONNECTIONS_MAX"] = str(count)
        server = LiveServer(Path(directory), settings).start()
        try:
            phases = run_phases(server, options.attack, count, options.seconds)
        finally:
            server.stop()
    good = judge(phases, options.attack)
    return 0 if good or not options.check else 1


def run_phases(server: LiveServer, attack: str, count: int, seconds: int) -> list[Phase]:
    """Measure the phases, quiet and attacked in turn, and print a line for each."""
    measure_steady_clients(server, seconds)  # fills pages of the log, and warms caches
    print(f"{'':>8} {'requests':>9} {'p50, ms':>8} {'p99, ms':>8} {'max, ms':>8} {'MB':>8}")
    phases = []
    for _ in range(ROUNDS):
        phases.append(print_phase(measure_phase(server, seconds, attacked=False)))
        attackers = Attack(server, attack, count)
        try:
            attackers.wait()
            phases.append(print_phase(measure_phase(server, seconds, attacked=True)))
        finally:
            attack_report = attackers.end()
        print(
            f"{'':>8} {attack_report['open']:,} {attack} clients at once, {attack_report['cpu']:.0%} of a core; "
            f"{attack_report['ends']}",
            flush=True,
        )
        time.sleep(2)  # until the server has cleaned up after them
    return phases


class Attack:
    """The process of the hostile clients."""

    def __init__(self, server: LiveServer, attack: str, count: int) -> None:
        self.server, self.count = server, count
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.attack.attackers", str(server.port), str(count), ",".join(KINDS[attack])],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until all are connected, and the first were disconnected and came back."""
        time.sleep(self.count / 2_000 + 6)
        assert self.process.poll() is None

    def look(self) -> Any:
        """Return what they say of themselves so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> Any:
        """Stop the attackers; return their own report."""
        said, _ = self.process.communicate("", timeout=HANG_SECONDS)
        return json.loads(said)


def measure_steady_clients(server: LiveServer, seconds: int) -> Any:
    """Return the measurements of the honest clients."""
    words = [str(number) for number in (server.port, STEADY_CLIENTS, seconds, DIMENSION)]
    ended = subprocess.run(
        [sys.executable, "-m", "loadtests.attack.steady_client", *words],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds + HANG_SECONDS, check=True,
    )  # fmt: skip
    return json.loads(ended.stdout)


def measure_phase(server: LiveServer, seconds: int, *, attacked: bool) -> Phase:
    """Measure one phase of `seconds`."""
    before = footprint(server.pid).total
    measured = measure_steady_clients(server, seconds)
    memory = max(before, footprint(server.pid).total)
    latencies = sorted(1e3 * latency for latency in measured["latencies"]) or [float("inf")]
    return Phase(
        attacked, len(latencies), latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100], latencies[-1],
        memory, measured["failures"],
    )  # fmt: skip


def print_phase(measured: Phase) -> Phase:
    """Print a phase."""
    name = "attacked" if measured.attacked else "quiet"
    numbers = f"{measured.p50:>8.2f} {measured.p99:>8.2f} {measured.worst:>8.2f} {measured.memory:>8.1f}"
    print(f"{name:>8} {measured.requests:>9,} {numbers} {measured.failures or ''}", flush=True)
    return measured


def judge(phases: list[Phase], attack: str) -> bool:
    """Print the verdict; True when every bound holds."""
    quiet, attacked = ([found for found in phases if found.attacked == which] for which in (False, True))
    ratio = statistics.median(found.p99 for found in attacked) / statistics.median(found.p99 for found in quiet)
    bound = RATIOS_MAX[attack]
    growth = max(found.memory for found in attacked) - quiet[0].memory
    failures = sum((Counter(found.failures) for found in phases), Counter())
    good = ratio <= bound and growth <= MEMORY_MB_MAX and not failures
    print(
        f"median p99 under attack is {ratio:.2f} of the quiet one (bound {bound}), memory grew by {growth:.0f} MB "
        f"(bound {MEMORY_MB_MAX:.0f}), {sum(failures.values())} honest requests failed"
    )
    return good


if __name__ == "__main__":
    sys.exit(main())
