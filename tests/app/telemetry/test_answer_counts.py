"""Answer counts: each answer counts under its route and status, and none is lost because it cannot be counted."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.routes.metrics import WorkersCollector
from app.telemetry.answer_counts import AnswerCounts
from app.telemetry.latency_histogram import LatencyHistogram
from app.telemetry.series import event_latency_histogram, measure_into_files_of, request_counter
from testing.block_fixture import begin, exit_of

ROUTES = {"event": "/event", "state": "/state", "memories/1": "/memories/{memory_id}"}


def test_an_answer_is_counted_before_it_is_written_and_its_time_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only answers with status 200 of a route with a latency have a time; in two workers and a successor."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def worker(row: int) -> None:
        answers, events = counting(row)
        written = [
            answers.count({"PATH_INFO": path}, status)
            for path, status in (
                ("/event", "200 OK"), ("/event", "200 OK"), ("/event", "503 Service Unavailable"), ("/state", "200 OK"),
                ("/memories/1", "200 OK"), ("//event", "200 OK"),
            )
        ]  # fmt: skip
        assert written == [events.count, events.count, None, None, None, None]

    for row in (0, 1, 1):
        assert exit_of(begin(partial(worker, row))) == 0
    assert counted() == {
        ("/event", "200"): 9, ("/event", "503"): 3, ("/state", "200"): 3, ("/memories/{memory_id}", "200"): 3,
    }  # fmt: skip
    assert timed() == 6


def test_paths_of_clients_become_no_labels_and_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths without a route are `other`, and so is a request that was refused before it had a path."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def worker() -> None:
        answers, _ = counting(0)
        kinds = len(answers)
        for number in range(1_000):
            answers.count({"PATH_INFO": f"/nowhere/{number}"}, "404 Not Found")
            answers.count({"PATH_INFO": "/" * number + "/event"}, "200 OK")
        answers.count({}, "400 Bad Request")
        assert len(answers) == kinds + 2

    assert exit_of(begin(worker)) == 0
    assert counted() == {("other", "404"): 1_000, ("/event", "200"): 1_000, ("other", "400"): 1}


def test_an_answer_that_cannot_be_counted_is_still_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors may have run out. Existing series still count, one line is logged, and later it may succeed."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def worker() -> None:
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("mlsdm.worker").addHandler(handler)
        answers, _ = counting(0)
        answers.count({"PATH_INFO": "/state"}, "200 OK")
        inner: Any = answers
        labels = inner._counter.labels
        inner._counter.labels = fails
        for _ in range(3):
            assert answers.count({"PATH_INFO": "/memories/1"}, "200 OK") is None
            answers.count({"PATH_INFO": "/state"}, "200 OK")
        inner._counter.labels = labels
        answers.count({"PATH_INFO": "/memories/1"}, "200 OK")
        assert said == ["an answer could not be counted, and others may not be; this is said once"]

    assert exit_of(begin(worker)) == 0
    assert counted() == {("/state", "200"): 4, ("/memories/{memory_id}", "200"): 1}


def counting(row: int) -> tuple[AnswerCounts, LatencyHistogram]:
    """Count into the files of a row; also returns the latency of events."""
    measure_into_files_of(row)
    events = LatencyHistogram(event_latency_histogram())
    return AnswerCounts(request_counter(), {"/event": events}, lambda path: ROUTES.get(path.lstrip("/"))), events


def fails(*_labels: str) -> None:
    """Do as the library does without a descriptor."""
    raise OSError(24, "Too many open files")


def counted() -> dict[tuple[str, str], float]:
    """Return how many answers there were, by route and status, of those that there were."""
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in WorkersCollector().collect()
        if family.name == "mlsdm_requests"
        for sample in family.samples
        if sample.value
    }


def timed() -> float:
    """Return how many events have a latency, or are about to."""
    [count] = [
        sample.value
        for family in WorkersCollector().collect()
        for sample in family.samples
        if sample.name == "process_event_latency_seconds_count"
    ]
    return count
