"""Resource use of a server and its load generator between two readings.

Processor time is the sum over all processes of the server (arbiter, controller, workers), from their CPU clocks; the
generator's is separate. Requests are the workers' counters in the shared block, which they write four times a second:
over ten seconds the rate is exact to some percent, over a minute to one. `others` is the time of all other programs,
stolen time of the virtual machine included; where it is high, latencies are theirs.
"""

import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import psutil

from loadtests.bench.processor import family, used_ns
from testing.live_server import LiveServer

HEAD: Final = (
    "| {:>7} | requests/s | server, cores | CPU µs/request | generator, cores | others, cores | load average |"
)
RULE: Final = "|---:" * 7 + "|"


class Reading(NamedTuple):
    """Sums so far: seconds of the clock, ns of processor time, requests."""

    seconds: float
    server_ns: int
    generator_ns: int
    busy_ns: int
    requests: int


class Window(NamedTuple):
    """Between two readings: requests per second, and cores."""

    rate: float
    server: float
    generator: float
    others: float
    load_average: float

    @property
    def cpu_us(self) -> float:
        """Processor time of the server for a request."""
        return 1e6 * self.server / self.rate if self.rate else float("nan")

    def line(self, name: str) -> str:
        """Return its row of the table."""
        return (
            f"| {name:>7} | {self.rate:,.0f} | {self.server:.3f} | {self.cpu_us:,.0f} | {self.generator:.2f} | "
            f"{self.others:.2f} | {self.load_average:.1f} |"
        )


class Meter:
    """Reads one server and one generator. Raises ProcessLookupError when a process of theirs has ended meanwhile."""

    def __init__(self, server: LiveServer, generator_pids: Callable[[], list[int]]) -> None:
        """`generator_pids` returns the pids of the generator; none before it has started."""
        self._block = server.block()  # kept, because the rows point into its mapping
        self._rows = [self._block.region("rows", number) for number in range(self._block.layout.rows)]
        self._pids = family(server.pid)
        self._generator_pids = generator_pids

    def read(self) -> Reading:
        """Read everything."""
        busy = sum(sum(core[:3]) + sum(core[5:8]) for core in psutil.cpu_times(percpu=True))
        requests = sum(int(row.requests) for row in self._rows)
        return Reading(
            time.monotonic(), used_ns(self._pids), used_ns(self._generator_pids()), round(busy * 1e9), requests
        )


def between(before: Reading, after: Reading) -> Window:
    """Return the use between two readings."""
    seconds, server, generator, busy, requests = (y - x for x, y in zip(before, after, strict=True))
    others = max(0.0, busy - server - generator)
    nanoseconds = 1e9 * seconds
    return Window(
        requests / seconds, server / nanoseconds, generator / nanoseconds, others / nanoseconds, os.getloadavg()[0]
    )
