"""Series that workers measure: counters and histograms in files of prometheus_client, one set per worker row.

Owns: the names, HELP texts and buckets of these series, and the files of a row.

Invariants: a file is complete before a scrape can see it. A successor in a row continues the files of its predecessor,
so files do not pile up and no count is lost.
"""

import os
from inspect import getclosurevars
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict

from core.settings.tiers import TIERS

LATENCY_BUCKETS = (
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip

REFUSALS = "mlsdm_refusals"
# Codes that alerts name (deploy/prometheus/rules/clients.yml). Their series exist from a worker's start, because rate()
# ignores the first value of a series. A test compares them with the rules.
WATCHED = (
    "internal_error", "rate_limit_exceeded", "unauthorised", "too_many_connections", "bodies_full", "pipelines_full",
    "store_busy",
)  # fmt: skip
KINDS = ("histogram", "counter", "gauge_sum")  # of series, as the names of their files begin; gauges are of modules
FILE_SIZE = 1 << 17  # bytes: about 200 a series, for some 20 routes with 15 statuses and a hundred codes


def measure_into_files_of(owner: int | str) -> None:
    """Make this process measure into its owner's files: a worker row, or the name of a supervised child.

    A successor of the same owner continues these files. Call it once, before any metric is made.
    """
    # The directory may have been removed as a temporary one; that must not keep a worker from serving.
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    create_files(directory, owner)
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: owner)  # type: ignore[no-untyped-call] # untyped
    # prometheus_client opens a file with the first series of its kind. A module may make one at any time, even when
    # no descriptors are left, so all are opened now.
    files = getclosurevars(values.ValueClass._MmapedValue__reset).nonlocals["files"]
    for kind in KINDS:
        files[kind] = MmapedDict(str(directory / f"{kind}_{owner}.db"))  # type: ignore[no-untyped-call] # untyped


def event_latency_histogram() -> Histogram:
    """Return the latency histogram of events, for this worker."""
    return _latency("process_event_latency_seconds", "event requests")


def recall_latency_histogram() -> Histogram:
    """Return the latency histogram of recalls, for this worker."""
    return _latency("mlsdm_recall_latency_seconds", "recalls")


def _latency(name: str, what: str) -> Histogram:
    text = f"Seconds from complete request to written answer; {what} answered 200."
    return Histogram(name, text, buckets=LATENCY_BUCKETS, registry=CollectorRegistry())


def worker_counter() -> Counter:
    """Return the counter of workers that have started in this row."""
    return Counter("mlsdm_workers_started", "Workers that have started serving.", registry=CollectorRegistry())


def abandoned_counter() -> Counter:
    """Return the counter of deferred operations that did not end when they were cancelled, for this worker."""
    text = "Deferred operations that did not end when they were cancelled."
    return Counter("mlsdm_deferred_abandoned", text, registry=CollectorRegistry())


def request_counter() -> Counter:
    """Return the counter of answers by route and status, for this worker."""
    return Counter("mlsdm_requests", "Answers, by route and status.", ["route", "status"], registry=CollectorRegistry())


def rate_limited_counter() -> Counter:
    """Return the counter of requests that their client's rate limit refused, by tier, for this worker."""
    return _by_tier("mlsdm_rate_limited", "Requests refused with 429, by tier of the client.")


def rejected_counter() -> Counter:
    """Return the counter of events that the moral filter rejected, by tier of their client, for this worker."""
    return _by_tier("mlsdm_events_rejected", "Events rejected by the moral filter, by tier of the client.")


def _by_tier(name: str, text: str) -> Counter:
    counter = Counter(name, text, ["tier"], registry=CollectorRegistry())
    for tier in TIERS:
        counter.labels(tier)  # the series exists from now on: rate() ignores its first value
    return counter


def create_files(directory: Path, owner: int | str) -> None:
    """Create the missing files of an owner, complete before a scrape can see them, and of their final size.

    prometheus_client creates a file empty and sets its size a moment later. A scrape in between fails as a whole, and
    if the process is killed in between, every scrape fails until its owner has a successor. Growing a file takes a
    descriptor; if there is none, the library does not recover.
    """
    for kind in KINDS:
        path = directory / f"{kind}_{owner}.db"
        if path.exists() and path.stat().st_size:
            continue
        complete = path.with_suffix(".new")
        complete.write_bytes(bytes(FILE_SIZE))  # zeros: no part is used yet
        complete.rename(path)


def refusal_counter() -> Counter:
    """Return the counter of refused requests by problem code, for this worker. Unexpected errors count, too."""
    counter = Counter(REFUSALS, "Refused requests, by problem code.", ["code"], registry=CollectorRegistry())
    for code in WATCHED:
        counter.labels(code)
    return counter
