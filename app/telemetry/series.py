"""Series that workers measure: counters and histograms in prometheus_client's multiprocess files, one set a worker row.

Owns: the names, HELP texts and buckets of these series, and the files of a row.

Invariants: a file is complete before a scrape can see it. A successor in a row continues the files of its predecessor,
so files do not pile up and no count is lost.
"""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, values

LATENCY_BUCKETS = (
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip

REFUSALS = "mlsdm_refusals"
# Those that alerts name (deploy/prometheus/rules/clients.yml), counted from a start on, because rate() sees nothing
# of what a series begins with. A test holds them against the rules.
WATCHED = (
    "internal_error", "rate_limit_exceeded", "unauthorised", "too_many_connections", "bodies_full", "pipelines_full",
    "store_busy",
)  # fmt: skip
FILE_SIZE = 1 << 17  # bytes: about 200 for each series, of some 20 routes with 15 statuses and a hundred codes


def measure_into_row(row: int) -> None:
    """Have this process measure into the files of its row. To be called once, before any metric is made."""
    # A cleaner of /tmp may have taken the directory away; that must not keep a worker from serving.
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    create_row_files(directory, row)
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: row)  # type: ignore[no-untyped-call] # theirs


def event_latency_histogram() -> Histogram:
    """Make this worker's histogram of events."""
    return _latency("process_event_latency_seconds", "event requests")


def recall_latency_histogram() -> Histogram:
    """Make this worker's histogram of recalls."""
    return _latency("mlsdm_recall_latency_seconds", "recalls")


def _latency(name: str, what: str) -> Histogram:
    text = f"Seconds from complete request to written answer; {what} answered 200."
    return Histogram(name, text, buckets=LATENCY_BUCKETS, registry=CollectorRegistry())


def worker_counter() -> Counter:
    """Make the counter of workers that have begun in this row."""
    return Counter("mlsdm_workers_started", "Workers that have started serving.", registry=CollectorRegistry())


def request_counter() -> Counter:
    """Make this worker's counter of answers, by route and status."""
    return Counter("mlsdm_requests", "Answers, by route and status.", ["route", "status"], registry=CollectorRegistry())


def create_row_files(directory: Path, row: int) -> None:
    """Make the files of a row that does not have them yet, complete before anybody can see them.

    prometheus_client creates them empty and gives them their size a moment later; a scrape that reads one in between
    fails as a whole, and one whose worker is killed in between makes every scrape fail until its row is used again. And
    they are as large as they will ever have to be: to make one larger takes a descriptor, which there may not be, and
    the library would not come back to its senses.
    """
    for kind in ("histogram", "counter"):
        path = directory / f"{kind}_{row}.db"
        if path.exists() and path.stat().st_size:
            continue
        whole = path.with_suffix(".new")
        whole.write_bytes(bytes(FILE_SIZE))  # zeros: nothing of it is used
        whole.rename(path)


def refusal_counter() -> Counter:
    """Make this worker's counter of refused requests, by the code of the problem.

    An error that nobody expected is one of them: its code is `internal_error`.
    """
    counter = Counter(REFUSALS, "Refused requests, by problem code.", ["code"], registry=CollectorRegistry())
    for code in WATCHED:
        counter.labels(code)
    return counter
