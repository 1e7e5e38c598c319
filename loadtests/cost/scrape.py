"""Time and size of a scrape of /metrics, before and after workers are replaced.

    python -m loadtests.cost.scrape
    python -m loadtests.cost.scrape --recycles 10 --check

A production server with two workers gets events; scrapes on one connection are timed. Then workers are ended one at a
time, alternately by SIGKILL and SIGTERM, and the scrapes are timed again. Metric files belong to worker rows, so their
number must not exceed the rows.

With --check the exit status is 1 when the median is 5 ms or more, when it has grown by half, or when there are too
many files.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from loadtests.bench import report
from loadtests.bench.servers import TOKEN, Product
from loadtests.bench.traffic import RAW
from loadtests.bench.vectors import DIMENSION
from loadtests.bench.wrk import MeasurementError
from testing.eventually import eventually

RECYCLES: Final = 50
SCRAPES: Final = 200
WORKERS: Final = 2
SCRAPE_MS_MAX: Final = 5.0
GROWTH_MAX: Final = 1.5
FAMILIES: Final = 2  # kinds of files: histogram and counter
_KEY: Final = {"Authorization": f"Bearer {TOKEN}"}


class ScrapeFigures(NamedTuple):
    """Scrapes at one time, and the files that they read."""

    p50_ms: float
    p99_ms: float
    size: int
    files: int


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.cost.scrape", description="Measure scrapes.")
    parser.add_argument("--recycles", type=int, default=RECYCLES, help=f"workers to replace (default {RECYCLES})")
    parser.add_argument("--check", action="store_true", help="fail when a scrape is slow or has grown")
    args = parser.parse_args(arguments)
    print(
        f"{report.machine()}; {WORKERS} workers\n\n| workers replaced | p50 ms | p99 ms | bytes | files |\n"
        + "|---:" * 5
        + "|"
    )
    with tempfile.TemporaryDirectory(prefix="mlsdm-scrape-") as name:
        metrics = Path(name, "metrics")
        server = Product(Path(name), {"WORKERS": str(WORKERS), "PROMETHEUS_MULTIPROC_DIR": str(metrics)})
        try:
            server.start(os.sched_getaffinity(0))
            rows = server.live.block().layout.rows
            before = measure_scrapes(server, metrics, 0)
            replace_workers(server, args.recycles)
            after = measure_scrapes(server, metrics, args.recycles)
        except MeasurementError as error:
            print(f"scrape: {error}", file=sys.stderr)
            return 2
        finally:
            server.stop()
    violations = verdict(before, after, rows)
    for sentence in violations:
        print(sentence)
    return 1 if args.check and violations else 0


def measure_scrapes(server: Product, metrics: Path, replaced: int) -> ScrapeFigures:
    """Send events through every worker, time scrapes, print a line. Raises MeasurementError."""
    vector = np.ones(DIMENSION, "<f4").tobytes()
    for moral in ("0.8", "2"):  # the second is refused and counted
        for _ in range(8 * WORKERS):  # one connection each, so that both workers get some
            server.live.request("POST", "/event", vector, {**_KEY, **RAW, "Moral-Value": moral})
    connection, taken, size = server.live.connect(), [], 0
    for _ in range(SCRAPES):
        began = time.perf_counter()
        answer = server.live.request("GET", "/metrics", headers=_KEY, connection=connection)
        taken.append(1e3 * (time.perf_counter() - began))
        if answer.status != 200:
            raise MeasurementError(f"/metrics was answered {answer.status}: {answer.body[:200].decode()}")
        size = len(answer.body)
    connection.close()
    p99 = float(np.percentile(taken, 99))
    found = ScrapeFigures(statistics.median(taken), p99, size, len(list(metrics.glob("*/*.db"))))
    print(f"| {replaced} | {found.p50_ms:.2f} | {found.p99_ms:.2f} | {size:,} | {found.files} |", flush=True)
    return found


def replace_workers(server: Product, count: int) -> None:
    """End `count` workers one after the other, and wait for the successor of each."""
    block = server.live.block()
    for number in range(count):
        workers = server.live.workers(block)
        ended = workers[number % len(workers)]
        os.kill(ended, signal.SIGKILL if number % 2 else signal.SIGTERM)

        def replaced(ended: int = ended, before: frozenset[int] = frozenset(workers)) -> bool:
            now = server.live.workers(block)
            return ended not in now and len(now) == len(before) and not frozenset(now) <= before

        try:
            eventually(replaced)
        except AssertionError:
            raise MeasurementError(
                f"worker {ended} was not replaced; the rows belong to {server.live.workers(block)}"
            ) from None


def verdict(before: ScrapeFigures, after: ScrapeFigures, rows: int) -> list[str]:
    """Return a sentence for each bound that is broken."""
    violations = [
        f"a scrape takes {one.p50_ms:.1f} ms {when}; under {SCRAPE_MS_MAX:g} ms is promised"
        for when, one in (("at the start", before), ("after workers were replaced", after))
        if one.p50_ms >= SCRAPE_MS_MAX
    ]
    if after.p50_ms > GROWTH_MAX * before.p50_ms:
        violations.append(
            f"a scrape takes {after.p50_ms / before.p50_ms:.1f} times as long after workers were replaced"
        )
    if after.files > rows * FAMILIES:
        violations.append(f"there are {after.files} files; expected at most {FAMILIES} for each of {rows} rows")
    return violations


if __name__ == "__main__":
    sys.exit(main())
