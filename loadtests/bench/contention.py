"""An upper bound of the 99th percentile of the wait for the lock under full load.

Two workers on all cores get single events and batches of 100 at full speed; each event is one critical section. The
block has, per worker, the number of sections that waited and their total wait, not the distribution. Two facts bound
it. If at most a hundredth of the sections waited, the percentile is 0. Of n waits with total w, at most min(n, w ÷ t)
lasted longer than t. The bound is the smallest t that leaves a hundredth of the sections, summed over windows of 5 ms
and workers, so that one long wait (a holder that was preempted) is not spread over the others.

A worker counts a wait in two steps, and a read may fall between them, so each window with time in it is allowed one
wait more. The controller's sections are not counted. A wait lasts until the waiter runs again: on a shared core it is
mostly scheduling.
"""

import time
from pathlib import Path
from threading import Thread
from typing import Any, Final, NamedTuple

from loadtests.bench import wrk
from loadtests.bench.processor import Cores
from loadtests.bench.servers import Product
from loadtests.bench.traffic import Traffic, encode_requests
from loadtests.bench.wrk import MeasurementError, Sample

WINDOW_SECONDS: Final = 0.005
SHARE: Final = 0.01  # of the sections may wait longer


class Window(NamedTuple):
    """What one worker counted in one window: sections that found the lock taken, and their waiting in ns."""

    waits: int
    waited_ns: int


class Waits(NamedTuple):
    """Sections of all workers, and the windows in which one of them waited."""

    sections: int
    windows: list[Window]

    @property
    def waits(self) -> int:
        """Sections that found the lock taken."""
        return sum(window.waits for window in self.windows)

    @property
    def mean_us(self) -> float:
        """The mean of those that waited, µs."""
        return sum(window.waited_ns for window in self.windows) / self.waits / 1e3 if self.waits else 0.0

    @property
    def p99_us_max(self) -> float:
        """An upper bound of the 99th percentile of the wait, µs; to a hundredth of itself."""
        if self.waits <= SHARE * self.sections:
            return 0.0
        low, high = 1.0, 1.0 + sum(window.waited_ns for window in self.windows) / (SHARE * self.sections)
        while high > 1.01 * low:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if self._longer(middle) <= SHARE * self.sections else (middle, high)
        return high / 1e3

    def _longer(self, wait_ns: float) -> float:
        """Return how many waits can have taken longer than `wait_ns`, at most."""
        return sum(min(window.waits + 1, window.waited_ns / wait_ns) for window in self.windows)


def measure(directory: Path, traffic: list[Traffic], cores: Cores, seconds: int) -> Waits:
    """Send all traffic concurrently for `seconds`. Raises MeasurementError."""
    server = Product(directory, {"WORKERS": "2"})
    server.start(cores.everywhere)
    try:
        accepted = server.accepted() or 0
        samples: list[Sample | MeasurementError] = []

        def send(number: int, part: Traffic) -> None:
            path = directory / f"contention-{number}.requests"
            path.write_bytes(encode_requests(part))
            try:
                samples.append(wrk.run(server.port, path, part.connections, seconds, core=cores.client, polling=False))
            except MeasurementError as error:
                samples.append(error)

        clients = [Thread(target=send, args=(number, part)) for number, part in enumerate(traffic)]
        for client in clients:
            client.start()
        windows = _watched(server, clients)
        for sample in samples:
            if isinstance(sample, MeasurementError) or sample.errors or not sample.completed:
                raise MeasurementError(f"waits for the lock: {sample}")
        return Waits((server.accepted() or 0) - accepted, windows)
    finally:
        server.stop()


def _watched(server: Product, clients: list[Thread]) -> list[Window]:
    """Return the windows with waits in them, until all clients have ended."""
    block = server.live.block()
    rows = [block.region("rows", number) for number in range(block.layout.rows)]
    before = [_counted(row) for row in rows]
    windows: list[Window] = []
    alive = True
    while alive:
        alive = any(client.is_alive() for client in clients)
        time.sleep(WINDOW_SECONDS)
        after = [_counted(row) for row in rows]
        moved = (Window(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True))
        windows += [window for window in moved if window.waits or window.waited_ns]
        before = after
    return windows


def _counted(row: Any) -> Window:
    return Window(int(row.lock_waits), int(row.lock_wait_ns))
