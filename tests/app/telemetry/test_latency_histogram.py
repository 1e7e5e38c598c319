"""Latency histogram: what is added in place equals what prometheus_client would write."""

import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram

from app.httpd.request import RECEIVED_NS
from app.routes.metrics import WorkersCollector
from app.telemetry import latency_histogram
from app.telemetry.latency_histogram import LatencyHistogram
from app.telemetry.series import LATENCY_BUCKETS, event_latency_histogram, measure_into_files_of
from testing.block_fixture import begin, exit_of

BESIDE = [edge * factor for edge in LATENCY_BUCKETS for factor in (0.999, 1.001)]
ELAPSED_NS = [0, 1, 25_000, 25_001, 10**12, *(round(seconds * 1e9) for seconds in BESIDE)]


def test_a_request_is_counted_in_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two workers, one of them the successor of another; the edges of the buckets belong to them."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def worker(row: int) -> None:
        module: Any = latency_histogram  # in this child alone
        counter = measuring(row)
        for elapsed_ns in ELAPSED_NS:
            module.time = SimpleNamespace(monotonic_ns=lambda now=7 + elapsed_ns: now)
            tell(counter)
            counter.count({RECEIVED_NS: 7})

    def asks() -> None:
        mean = sum(ELAPSED_NS) * 1e-9 / len(ELAPSED_NS)
        assert pytest.approx(mean) == measuring(2).mean_seconds()

    for row in (0, 1, 1):
        assert exit_of(begin(partial(worker, row))) == 0
    expected = Histogram(
        "process_event_latency_seconds", "of them", buckets=LATENCY_BUCKETS, registry=CollectorRegistry()
    )
    for _ in range(3):
        for elapsed_ns in ELAPSED_NS:
            expected.observe(elapsed_ns * 1e-9)

    assert samples(next(iter(expected.collect()))) == samples(
        next(family for family in WorkersCollector().collect() if family.name == "process_event_latency_seconds")
    )
    assert exit_of(begin(asks)) == 0


def test_a_request_is_counted_before_its_time_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has the answer finds it counted in the last bucket; if the worker dies then, it stays there."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def worker(row: int) -> None:
        counter = measuring(row)
        tell(counter)
        counter.count({RECEIVED_NS: time.monotonic_ns() - 1_000_000_000})
        tell(counter)

    for row in (0, 1):
        assert exit_of(begin(partial(worker, row))) == 0
    found = samples(next(one for one in WorkersCollector().collect() if one.name == "process_event_latency_seconds"))
    buckets = [found[f"process_event_latency_seconds_bucket{edge}"] for edge in ("0.5", "2.5", "+Inf")]
    assert buckets == [0, 2, 4]
    assert found["process_event_latency_seconds_count"] == 4


def test_the_mean_is_0_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner of /tmp may remove them; /health/detailed is still answered."""
    directory = tmp_path / "metrics"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))

    def worker() -> None:
        counter = measuring(0)
        tell(counter)
        counter.count({RECEIVED_NS: 0})
        assert counter.mean_seconds() > 0
        shutil.rmtree(directory)
        assert counter.mean_seconds() == 0

    assert exit_of(begin(worker)) == 0


def measuring(row: int) -> LatencyHistogram:
    """Measure into the files of a row."""
    measure_into_files_of(row)
    return LatencyHistogram(event_latency_histogram())


def tell(counter: LatencyHistogram) -> None:
    """Say that an answer is about to be written."""
    numbers, last = counter.total_cell
    numbers[last] += 1.0


def samples(family: Any) -> dict[str, float]:
    """Return the samples of a histogram; the sum to a digit fewer than additions in another order may differ in."""
    return {
        sample.name + sample.labels.get("le", ""): round(sample.value, 6)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
