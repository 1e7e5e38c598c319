"""The soak: an hour of load with a process killed every ten seconds, and samples of everything that might grow.

The server has its real size, 20,000 memories of 384 floats. Four of five kills hit a worker, one hits the controller.
Before each kill, the memory of all processes, their open descriptors and the median time of a scrape are sampled and
printed to stderr.

The last third of the run is compared with the first by medians. A scrape is measured in units of a page of the log,
requested alternately on the same connection, so that a busier machine slows both and the ratio stays.

The load restarts every few minutes with new events, because the clients' records of an hour would be gigabytes. So it
is not judged here, but no client may wait long for an answer.
"""

import os
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Final, NamedTuple

import psutil

from loadtests.cost.process_memory import footprint
from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.load import ClientRecords, Events, Load
from loadtests.faults.trial import CLIENTS, failures_by_kind
from shm.store import Store
from testing.eventually import eventually
from testing.live_server import LiveServer

SECONDS: Final = 3600.0
KILL_SECONDS: Final = 10.0
CONTROLLER_EACH: Final = 5  # one death in five is the controller's
LOAD_SECONDS: Final = 120.0
SCRAPES: Final = 9
PAGE: Final = "/decisions?limit=200"
DIMENSION: Final = 384
SIZES: Final = {"WORKERS": "2", "MLSDM_DIMENSION": str(DIMENSION), "MLSDM_CAPACITY": "20000"}
GROWTH_MB_MAX: Final = 2.0
GROWTH_DESCRIPTORS_MAX: Final = 6  # a leak per death would be one per sample
GROWTH_SCRAPE_MAX: Final = 1.5
STALL_SECONDS_MAX: Final = 5.0  # of one client: its worker and the next one may both die
LINE: Final = "{:7.0f} s {:8.2f} MB {:4d} descriptors {:6.2f} ms {:5.2f} pages {:12,d} events"
SAMPLES_MIN: Final = 9  # so that thirds are meaningful


class Sample(NamedTuple):
    """The server at one moment."""

    seconds: float
    memory_mb: float
    descriptors: int
    scrape_ms: float
    scrape_pages: float  # in units of a page of the log
    events: int


def soak(options: FaultOptions) -> Outcome:
    """Load and kill for an hour at full scale, at least for `SAMPLES_MIN` deaths."""
    deaths = max(SAMPLES_MIN, options.scaled(round(SECONDS / KILL_SECONDS)))
    every = min(KILL_SECONDS, max(0.5, SECONDS * options.scale / deaths))
    server = LiveServer(options.directory, dict(SIZES))
    samples: list[Sample] = []
    stalls, failed_attempts = [], Counter[str]()
    try:
        server.start()
        store, events, first = server.store(), Events(DIMENSION), 0
        began = time.monotonic()
        while len(samples) < deaths:
            pause = options.pause_seconds
            with Load(server.port, events, options.seed + first, CLIENTS, first, pause_seconds=pause) as load:
                until = time.monotonic() + LOAD_SECONDS
                while len(samples) < deaths and time.monotonic() < until:
                    time.sleep(max(0.0, began + every * (1 + len(samples)) - time.monotonic()))
                    samples.append(_sample(server, time.monotonic() - began, first + load.answered))
                    print(LINE.format(*samples[-1]), file=sys.stderr, flush=True)
                    _kill(server, store, len(samples))
                records = load.stop()
            stalls.append(max(stall for stall, _ in records.stalls()))
            failed_attempts += failures_by_kind(records)
            first = _next_number(records)
        server.stop()
    finally:
        server.kill()
    return outcome_of(samples, stalls, failed_attempts)


def _next_number(records: ClientRecords) -> int:
    """Return a number above those of all events that were sent."""
    return 1 + max([int(records.decided["number"].max()), *records.unanswered])


def _sample(server: LiveServer, seconds: float, events: int) -> Sample:
    arbiter = psutil.Process(server.pid)
    descriptors = 0
    for member in (arbiter, *arbiter.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            descriptors += member.num_fds()
    return Sample(seconds, footprint(server.pid).total, descriptors, *_time_scrapes(server), events)


def _time_scrapes(server: LiveServer) -> tuple[float, float]:
    """Return how long a scrape takes: milliseconds, and times of a page."""
    connection = server.connect()

    def took_ms(path: str) -> float:
        began = time.perf_counter()
        status = server.request("GET", path, connection=connection).status
        assert status == 200, status
        return 1e3 * (time.perf_counter() - began)

    took = [(took_ms("/metrics"), took_ms(PAGE)) for _ in range(SCRAPES)]
    connection.close()
    scrape_ms, page_ms = (statistics.median(times) for times in zip(*took, strict=True))
    return scrape_ms, scrape_ms / page_ms


def _kill(server: LiveServer, store: Store, number: int) -> None:
    """Kill a process of the server and wait for its successor."""
    workers, controller = server.workers(store.block), server.controller(store.block)
    victim = workers[number % len(workers)] if number % CONTROLLER_EACH else controller
    os.kill(victim, signal.SIGKILL)

    def replaced() -> bool:
        now = server.workers(store.block)
        return len(now) == len(workers) and victim not in (*now, server.controller(store.block))

    eventually(replaced)


def outcome_of(samples: list[Sample], stalls: list[float], failed_attempts: Counter[str]) -> Outcome:
    """Return the outcome of a soak, from its samples, the longest stall of each load, and the failed attempts."""
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]

    def median(part: list[Sample], name: str) -> float:
        return float(statistics.median(getattr(look, name) for look in part))

    memory = median(last, "memory_mb") - median(first, "memory_mb")
    descriptors = median(last, "descriptors") - median(first, "descriptors")
    scrape = median(last, "scrape_pages") / median(first, "scrape_pages")
    broken = []
    if memory > GROWTH_MB_MAX:
        broken.append(f"memory has grown by {memory:.1f} MB")
    if descriptors > GROWTH_DESCRIPTORS_MAX:
        broken.append(f"{descriptors:.0f} more descriptors are open")
    if scrape > GROWTH_SCRAPE_MAX:
        broken.append(f"a scrape takes {scrape:.2f} times as long")
    if max(stalls) > STALL_SECONDS_MAX:
        broken.append(f"a client went {max(stalls):.1f} s without an answer")
    figures: dict[str, float | int | str] = {
        "events": samples[-1].events,
        "memory, MB": median(last, "memory_mb"),
        "its growth, MB": memory,
        "descriptors": median(last, "descriptors"),
        "their growth": descriptors,
        "scrape, ms": median(last, "scrape_ms"),
        "scrape, pages of the log": median(last, "scrape_pages"),
        "its growth, times": scrape,
        "longest stall, s": max(stalls),
        **{f"answers {what}": count for what, count in failed_attempts.items()},
    }
    return Outcome(len(samples), figures, broken)
