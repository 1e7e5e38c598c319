"""One row of the benchmark: alternating rounds of its two sides, and their medians.

Only good answers count. A client error, or a count of accepted events that differs from the requests, makes the row an
error instead of a figure. wrk stops in the middle, so the count may lie between answered and sent.

Ratios are computed per round, and the median is kept, because the two sides of a round saw the same machine.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from loadtests.bench import wrk
from loadtests.bench.processor import Cores, used_ns
from loadtests.bench.rows import Row, Side
from loadtests.bench.servers import Server, listens
from loadtests.bench.traffic import NUMBER, Traffic, encode_requests
from loadtests.bench.wrk import MeasurementError


class Slice(NamedTuple):
    """One side in one round. `items` are vectors (or requests, where a request has one); times in µs."""

    requests_per_second: float
    items_per_second: float
    cpu_us: float  # of the server, per request
    busy: float  # cores that the server used
    p50_us: float
    p99_us: float


class Result(NamedTuple):
    """One row: the slices of its sides, round by round."""

    row: Row
    subject: list[Slice]
    reference: list[Slice]

    @property
    def ratios(self) -> list[float]:
        """One ratio per round: a share of processor time, or a gain in items per second."""
        pairs = zip(self.subject, self.reference, strict=True)
        if self.row.figure == "gain":
            return [one.items_per_second / other.items_per_second for one, other in pairs]
        return [other.cpu_us / one.cpu_us for one, other in pairs]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)


def median(slices: list[Slice]) -> Slice:
    """Return the median of every figure."""
    return Slice(*(statistics.median(figures) for figures in zip(*slices, strict=True)))


class ServerPool:
    """The servers of a run, started when a row asks for one and ended when no later row does."""

    def __init__(
        self, makers: Mapping[str, Callable[[], Server]], traffic: Mapping[str, Traffic], cores: Cores
    ) -> None:
        """`makers` make the servers by name."""
        self._makers, self._traffic, self.cores = makers, traffic, cores
        self._running: dict[str, Server] = {}
        self._files = tempfile.TemporaryDirectory(prefix="mlsdm-bench-")
        self._sent: dict[tuple[str, str], int] = {}
        self.notes: list[str] = []
        self.failures: list[str] = []  # servers that did not stop cleanly

    def __enter__(self) -> "ServerPool":
        return self

    def __exit__(self, *_error: object) -> None:
        self.keep(frozenset())
        self._files.cleanup()

    def server(self, name: str) -> Server:
        """Return a running server."""
        if name not in self._running:
            server = self._makers[name]()
            try:
                server.start({self.cores.server})
            except BaseException:
                server.stop()
                raise
            self._running[name] = server
            if server.note:
                self.notes.append(server.note)
        return self._running[name]

    def keep(self, names: frozenset[str]) -> None:
        """End all servers but these."""
        for name in [name for name in self._running if name not in names]:
            try:
                self._running.pop(name).stop()
            except MeasurementError as error:
                self.failures.append(f"{name}: {error}")

    def slice(self, side: Side, seconds: int) -> Slice:
        """Measure one side for `seconds`. Raises MeasurementError when an answer was not a good one."""
        server = self.server(side.server)
        traffic = {**self._traffic, **server.traffic}[side.traffic]
        path = Path(self._files.name, f"{side.server} {side.traffic}.requests".replace(" ", "-"))
        if not path.exists():
            path.write_bytes(encode_requests(traffic))
        key = (side.server, side.traffic)
        numbered = NUMBER.encode() in traffic.requests[0]
        accepted = server.accepted() if traffic.events else None
        with _steady(server, side) as spent:
            sample = wrk.run(
                server.port, path, traffic.connections, seconds,
                core=self.cores.client, offset=self._sent.get(key, 0), numbered=numbered,
            )  # fmt: skip
            listens(server.port)  # answered last, so all earlier requests are done
        self._sent[key] = self._sent.get(key, 0) + sample.sent + 1  # wrk generates one that it does not send
        if sample.errors or not sample.completed:
            raise MeasurementError(
                f"{side.traffic} on {side.server}: {sample.completed} answers, errors {sample.errors}"
            )
        if accepted is not None:
            moved = (server.accepted() or 0) - accepted
            check_moved(moved, sample, traffic.items, side)
        rate = sample.completed / sample.seconds
        return Slice(
            rate, rate * traffic.items, spent[0] / 1e3 / sample.sent, spent[0] / 1e9 / sample.seconds,
            *sample.latency_us,
        )  # fmt: skip


@contextmanager
def _steady(server: Server, side: Side) -> Iterator[list[int]]:
    """Yield a list that holds, afterwards, the processor time in ns that a server has used inside.

    Raises MeasurementError when its processes changed: their time would be incomplete.
    """
    spent: list[int] = []
    try:
        pids = server.pids()
        before = used_ns(pids)
        yield spent
        spent.append(used_ns(pids) - before)
        same = server.pids() == pids
    except (ProcessLookupError, psutil.NoSuchProcess):
        same = False
    if not same:
        raise MeasurementError(f"{side.traffic} on {side.server}: its processes changed while they were measured")


def check_moved(moved: int, sample: wrk.Sample, items: int, side: Side) -> None:
    """Raise MeasurementError unless `moved` matches the events in a sample's requests."""
    if not sample.completed * items <= moved <= sample.sent * items:
        raise MeasurementError(
            f"{side.traffic} on {side.server}: {moved} events were accepted; expected from "
            f"{sample.completed * items} (answered) to {sample.sent * items} (sent)"
        )


def measure(pool: ServerPool, row: Row, rounds: int, seconds: int) -> Result:
    """Measure one row. Raises MeasurementError."""
    for side in (row.reference, row.subject):
        pool.server(side.server)  # start both before measuring
    result = Result(row, [], [])
    sides = [(row.reference, result.reference), (row.subject, result.subject)]
    for _ in range(rounds):
        for side, slices in sides:
            slices.append(pool.slice(side, seconds))
        sides.reverse()  # so that drift of the machine affects both sides
    return result


def to_json(result: Result) -> dict[str, Any]:
    """Return a result for the JSON document."""
    row = result.row
    return {
        "row": row.name,
        "held_against": row.against,
        "figure": row.figure,
        "ratio": result.ratio,
        "ratio_min": min(result.ratios),
        "ratio_max": max(result.ratios),
        "subject": {**median(result.subject)._asdict(), "slices": [one._asdict() for one in result.subject]},
        "reference": {**median(result.reference)._asdict(), "slices": [one._asdict() for one in result.reference]},
    }
