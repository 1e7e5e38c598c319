"""How long a section waits for the lock under full load: an upper bound of its 99th percentile.

Two workers on every core there is, single events on one side and batches of 100 on the other, as fast as they come.
Each event is one section. The block tells how many sections of a worker found the lock taken and how long those waited
in all, not how the waits are distributed. Two things are known all the same. When no more than a hundredth of the
sections waited, the percentile is 0. And of n waits that took w together, no more than w ÷ t can have taken longer than
t, and no more than n. This is counted in windows of 5 ms, worker by worker, so that a wait of some milliseconds (the
scheduler had put the holder aside) is not spread over all the others. The smallest t that leaves a hundredth of the
sections is the bound: the true percentile may be lower, and is never higher.

A worker counts a wait in two steps, and a look may fall between them: the wait's time is then found in the window after
that of its number. Therefore each window with time in it is allowed one wait more than were counted.

The controller has no row, so its own waits are not counted; nor are its sections. A wait lasts until the waiter runs
again: with a client on the same core, or other people's programs, that is the scheduler's time more than the lock's.
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
    """Send all traffic at once for so long. Raises MeasurementError."""
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
