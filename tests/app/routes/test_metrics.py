"""GET /health/metrics: the names that operators know, one scrape for all workers, and exact counts."""

import os
import resource
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from app.api.problem_codes import CODES
from app.lifecycle.context import make_context
from app.lifecycle.contract import Module, NoSettings
from app.processes.child_table import ChildState
from app.routes.metrics import ChildrenCollector, WorkersCollector
from app.telemetry.series import (
    FILE_SIZE,
    WATCHED,
    create_files,
    measure_into_files_of,
    refusal_counter,
    request_counter,
)
from core.settings.config import Config
from core.settings.tiers import TIERS
from testing import keys
from testing.block_fixture import begin, exit_of
from testing.bodies import EXAMPLE, accepted, of_json, post, sent
from testing.eventually import eventually
from testing.live_server import LiveServer
from tests.programs import needs

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# Name → type. Those without the prefix are the runbook's.
FAMILIES = {
    "process_event_latency_seconds": "histogram",
    "total_events_processed": "unknown",
    "accepted_events_count": "unknown",
    "rejected_events_count": "unknown",
    "error_count": "unknown",
    "moral_filter_threshold": "gauge",
    "memory_usage_bytes": "gauge",
    "mlsdm_requests": "counter",
    "mlsdm_recall_latency_seconds": "histogram",
    "mlsdm_threshold_min": "gauge",
    "mlsdm_threshold_max": "gauge",
    "mlsdm_memory_percent": "gauge",
    "mlsdm_ready": "gauge",
    "mlsdm_workers": "gauge",
    "mlsdm_workers_configured": "gauge",
    "mlsdm_workers_started": "counter",
    "mlsdm_deferred_abandoned": "counter",
    "mlsdm_controller_silence_seconds": "gauge",
    "mlsdm_child_up": "gauge",
    "mlsdm_child_starts": "counter",
    "mlsdm_child_last_end": "gauge",
    "mlsdm_process_start_time_seconds": "gauge",
    "mlsdm_lock_holds_sampled": "counter",
    "mlsdm_lock_hold_seconds": "counter",
    "mlsdm_slots_mended": "counter",
    "cpu_usage_percent": "gauge",
    "mlsdm_decisions": "counter",
    "mlsdm_ema": "gauge",
    "mlsdm_asleep": "gauge",
    "mlsdm_memories": "gauge",
    "mlsdm_memories_max": "gauge",
    "mlsdm_stopped": "gauge",
    "mlsdm_block_bytes": "gauge",
    "mlsdm_level_norm": "gauge",
    "mlsdm_log_entries": "counter",
    "mlsdm_rhythm_steps": "counter",
    "mlsdm_rhythm_steps_skipped": "counter",
    "mlsdm_lock_acquisitions": "counter",
    "mlsdm_lock_deaths": "counter",
    "mlsdm_lock_rollbacks": "counter",
    "mlsdm_index_rebuilds": "counter",
    "mlsdm_lock_kills": "counter",
    "mlsdm_lock_waits": "counter",
    "mlsdm_lock_wait_seconds": "counter",
    "mlsdm_slots_torn": "counter",
    "mlsdm_slots_scrubbed": "counter",
    "mlsdm_drift_episodes": "counter",
    "mlsdm_controller_epochs": "counter",
    "mlsdm_config_last_reload_successful": "gauge",
    "mlsdm_config_last_reload_timestamp_seconds": "gauge",
    "mlsdm_reloads": "counter",
    "mlsdm_workers_killed": "counter",
    "mlsdm_log_lines_lost": "counter",
    "mlsdm_rate_limited": "counter",
    "mlsdm_events_rejected": "counter",
    "mlsdm_build": "gauge",
}


def scrape(server: LiveServer, path: str = "/health/metrics") -> Samples:
    """Return every sample of a scrape by name and labels."""
    text = server.get(path).body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return samples[name, frozenset(labels.items())]


@pytest.mark.parametrize("path", ["/health/metrics", "/metrics"])
def test_every_family_is_there_with_its_type(still_server: LiveServer, path: str) -> None:
    """Names exactly as dashboards have them, each with a help text."""
    answer = still_server.get(path)

    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}

    assert answer.headers["content-type"].startswith("text/plain; version=")
    expected = {name.removesuffix("_info"): kind for name, kind in FAMILIES.items()}
    found = {name.removesuffix("_info"): family.type for name, family in families.items()}
    assert {name: found.get(name) for name in expected} == expected
    assert all(family.documentation for family in families.values())


def test_runbook_names_carry_no_labels_and_no_suffix(still_server: LiveServer) -> None:
    """A query written for the original finds its series."""
    samples = scrape(still_server)

    for name in (
        "total_events_processed",
        "accepted_events_count",
        "rejected_events_count",
        "error_count",
        "moral_filter_threshold",
        "memory_usage_bytes",
        "cpu_usage_percent",
    ):
        assert (name, frozenset()) in samples
    assert not [name for name, _ in samples if name.endswith("_created")]


def test_the_blocks_figures_are_those_of_the_state(still_server: LiveServer) -> None:
    """Read at scrape time, not counted a second time."""
    accepted(still_server)
    sent(still_server, "/event", of_json({"event_vector": EXAMPLE, "moral_value": 0.0}))

    samples, state = scrape(still_server), still_server.state()

    assert value(samples, "total_events_processed") == state["total_events_processed"]
    assert value(samples, "accepted_events_count") == state["accepted_events_count"]
    assert value(samples, "rejected_events_count") == state["latent_events_count"]
    assert value(samples, "mlsdm_decisions_total", outcome="accepted") == state["accepted_events_count"]
    assert value(samples, "mlsdm_decisions_total", outcome="rejected") == state["latent_events_count"]
    assert value(samples, "moral_filter_threshold") == state["moral_filter_threshold"]
    assert value(samples, "mlsdm_ema") == state["ema"]
    assert value(samples, "mlsdm_asleep") == (state["current_phase"] == "sleep")
    assert value(samples, "mlsdm_memories") == state["memory_used"]
    assert value(samples, "mlsdm_memories_max") == state["capacity"]
    assert value(samples, "mlsdm_log_entries_total") == state["position"]
    assert value(samples, "mlsdm_rhythm_steps_total") == state["step"]
    for level in ("1", "2", "3"):
        assert value(samples, "mlsdm_level_norm", level=level) == state[f"L{level}_norm"]
    build = next(dict(labels) for name, labels in samples if name == "mlsdm_build_info")
    assert (build["boot_id"], build["log_id"]) == (state["boot_id"], state["log_id"])


def test_latencies_of_all_workers_are_counted_exactly(still_server: LiveServer) -> None:
    """After n event requests over several connections the count has moved by n; refused ones are not events."""
    before = scrape(still_server)
    connections = [still_server.connect() for _ in range(8)]

    for number in range(48):
        still_server.event(EXAMPLE, number / 48, connections[number % 8])
    for connection in connections:
        connection.close()
    sent(still_server, "/events", of_json([{"event_vector": EXAMPLE, "moral_value": 0.0}] * 3))
    assert post(still_server, "/event", of_json({})).status == 422

    after = scrape(still_server)
    count = "process_event_latency_seconds_count"
    assert value(after, count) == value(before, count) + 49
    assert value(after, "total_events_processed") == value(before, "total_events_processed") + 51
    assert value(after, "process_event_latency_seconds_sum") > value(before, "process_event_latency_seconds_sum")


def test_buckets_begin_at_25_microseconds_and_have_the_edge_of_the_alert(still_server: LiveServer) -> None:
    """The runbook alerts on 0.1 s; cumulative counts end in the total."""
    samples = scrape(still_server)

    edges = {
        dict(labels)["le"]: number
        for (name, labels), number in samples.items()
        if name == "process_event_latency_seconds_bucket"
    }

    assert {"2.5e-05", "0.1", "+Inf"} <= set(edges)
    assert min(map(float, edges)) == 25e-6
    ordered = [edges[edge] for edge in sorted(edges, key=float)]
    assert ordered == sorted(ordered)
    assert edges["+Inf"] == value(samples, "process_event_latency_seconds_count")


def test_errors_are_what_is_not_the_clients_fault(still_server: LiveServer) -> None:
    """Each answer of 500 or 503 counts, from whichever worker, and no refusal of what a client sent."""
    before = scrape(still_server)
    event = of_json({"event_vector": EXAMPLE, "moral_value": 0.0})

    assert still_server.request("POST", "/governor/stop").status == 200
    refused = [post(still_server, "/event", event).status for _ in range(7)]
    assert still_server.request("POST", "/governor/resume").status == 200
    refused += [post(still_server, "/event", of_json({})).status, still_server.get("/nope").status]

    after = scrape(still_server)
    assert refused == [503] * 7 + [422, 404]
    assert value(after, "error_count") == value(before, "error_count") + 7


def test_an_unexpected_error_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the files of any worker. A connection that is closed without an answer does not count, nor do 501 and 505; a
    worker that has refused nothing has 0.
    """
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def errors() -> float:
        [family] = [family for family in WorkersCollector().collect() if family.name == "error_count"]
        return family.samples[0].value

    def worker(row: int) -> None:
        measure_into_files_of(row)
        refusals = refusal_counter()
        for code in (
            "internal_error", "internal_error", "store_busy", "reader_too_slow", "field_invalid",
            "http_version_unsupported", "method_not_implemented", "transfer_coding_unknown",
        ):  # fmt: skip
            refusals.labels(code).inc()

    def idle() -> None:
        measure_into_files_of(2)
        refusal_counter()

    assert exit_of(begin(idle)) == 0
    assert errors() == 0
    for row in (0, 1):
        assert exit_of(begin(partial(worker, row))) == 0
    assert errors() == 6


def test_a_scrape_sees_complete_files_only(tmp_path: Path) -> None:
    """A row's files are complete from the first moment, even where a killed worker has left an incomplete one, and
    earlier counts stay.
    """
    (tmp_path / "counter_3.db").touch()
    (tmp_path / "counter_4.db").write_bytes(b"counted")
    for row in (3, 4):
        create_files(tmp_path, row)

    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes == {
        "counter_4.db": 7,
        **dict.fromkeys(
            ("histogram_3.db", "counter_3.db", "gauge_sum_3.db", "histogram_4.db", "gauge_sum_4.db"), FILE_SIZE
        ),
    }
    assert list(MmapedDict.read_all_values_from_file(str(tmp_path / "counter_3.db"))) == []  # type: ignore[no-untyped-call] # untyped
    (tmp_path / "counter_4.db").unlink()
    assert list(MultiProcessCollector(None, str(tmp_path)).collect()) == []  # type: ignore[no-untyped-call] # untyped


def test_the_first_series_of_a_kind_needs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module may make its first counter, gauge or histogram at any time; a child has made none before."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def child() -> None:
        measure_into_files_of("sample-child0")
        context = make_context(Module(), "child0", NoSettings(), Config())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        context.counter("done", "Done.", ()).inc()
        context.gauge("open", "Open.", ()).set(2)
        context.histogram("seconds", "Seconds.", ()).observe(0.1)

    monkeypatch.setattr(Module, "name", "sample", raising=False)

    assert exit_of(begin(child)) == 0
    assert sorted(family.name for family in MultiProcessCollector(None, str(tmp_path)).collect()) == [  # type: ignore[no-untyped-call] # untyped
        "mlsdm_sample_done", "mlsdm_sample_open", "mlsdm_sample_seconds",
    ]  # fmt: skip


def test_a_late_series_needs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that there may ever be, of 30 routes with 15 statuses and of every code, fit into the files as made."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def worker() -> None:
        measure_into_files_of(0)
        requests, refusals = request_counter(), refusal_counter()
        requests.labels("other", "200").inc()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for number in range(30):
            for status in range(400, 415):
                requests.labels(f"/a-route-of-some-length/{number}", str(status)).inc()
        for code in CODES:
            refusals.labels(code).inc()

    assert exit_of(begin(worker)) == 0
    assert (tmp_path / "counter_0.db").stat().st_size == FILE_SIZE
    [family] = [family for family in WorkersCollector().collect() if family.name == "mlsdm_requests"]
    assert sum(sample.value for sample in family.samples) == 451


def test_a_successor_continues_its_predecessors_counts(serve: Callable[..., LiveServer]) -> None:
    """Files are keyed by worker row: after a worker was killed nothing is lost, and no file is left over."""
    server = serve(WORKERS="1")
    for _ in range(5):
        server.event([1.0] * 8, 1.0)
    first = server.workers(server.block())

    os.kill(first[0], signal.SIGKILL)
    eventually(
        lambda: (now := server.workers(server.block())) and now != first and server.log.count("serves from row") == 2
    )
    for _ in range(3):
        server.event([1.0] * 8, 1.0)

    assert value(scrape(server), "process_event_latency_seconds_count") == 8


def test_the_configured_workers_are_those_of_the_configuration(serve: Callable[..., LiveServer]) -> None:
    """TTOU removes one until the next reload, and the scrape shows one less than configured."""
    server = serve(WORKERS="2")

    def workers() -> tuple[float, float]:
        samples = scrape(server)
        return value(samples, "mlsdm_workers"), value(samples, "mlsdm_workers_configured")

    eventually(lambda: workers() == (2, 2))
    os.kill(server.pid, signal.SIGTTOU)
    eventually(lambda: workers() == (1, 2))
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: workers() == (2, 2))


@pytest.mark.parametrize("takes", ["the files", "the directory"])
def test_without_the_workers_files_the_block_is_exposed(
    serve: Callable[..., LiveServer], tmp_path: Path, takes: str
) -> None:
    """A cleaner of /tmp may remove them: then their series are missing, not 0."""
    server = serve(PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "metrics"))
    [directory] = (tmp_path / "metrics").iterdir()
    server.event([1.0] * 8, 1.0)
    before = scrape(server)

    for file in directory.iterdir():
        file.unlink()
    if takes == "the directory":
        directory.rmdir()

    after = scrape(server)
    lost = {name for name, _ in before} - {name for name, _ in after}
    assert lost == {
        "mlsdm_requests_total", "mlsdm_refusals_total", "mlsdm_workers_started_total", "error_count",
            "mlsdm_deferred_abandoned_total", "mlsdm_rate_limited_total", "mlsdm_events_rejected_total",
        *(f"process_event_latency_seconds_{what}" for what in ("bucket", "count", "sum")),
        *(f"mlsdm_recall_latency_seconds_{what}" for what in ("bucket", "count", "sum")),
    }  # fmt: skip
    assert value(after, "total_events_processed") == 1
    assert server.get("/health/detailed").json["statistics"]["avg_latency_ms"] == 0


def test_series_that_alerts_watch_begin_at_0(serve: Callable[..., LiveServer]) -> None:
    """A rate shows the first burst only if the series existed before it."""
    samples = scrape(serve())

    begun = {(name, *sorted(dict(labels).values())) for (name, labels), number in samples.items() if not number}
    assert begun >= {
        ("mlsdm_requests_total", route, status)
        for route in ("/event", "/events", "/recall")
        for status in ("200", "429", "500", "503")
    }
    assert begun >= {("mlsdm_refusals_total", code) for code in ("internal_error", "store_busy", "unauthorised")}
    assert {dict(labels)["code"] for name, labels in samples if name == "mlsdm_refusals_total"} == set(WATCHED)


def test_every_answer_is_counted_once_by_route_and_status(serve: Callable[..., LiveServer]) -> None:
    """Whatever gives it: the fast path, the framework, a pool thread, an answer in pieces, or the connection, which
    refuses malformed requests; in both workers, and after each of them was replaced, by a drain or by a kill.
    """
    server = serve()

    answered: Counter[tuple[str, str]] = Counter()  # a busy machine may answer 503 to some: whatever it was, it counts

    def tell(route: str, method: str, path: str, *sent: Any) -> None:
        answered[route, str(server.request(method, path, *sent).status)] += 1

    def ask() -> None:
        octets = {"Content-Type": "application/octet-stream", "Moral-Value": "1.0"}
        for connection in server.connect_to_both_workers():
            tell("/event", "POST", "/event", np.ones(8, "<f4").tobytes(), octets, connection)
            tell("/event", "POST", "/event", b"{}", {"Content-Type": "application/json"}, connection)
            tell("/memories/{memory_id}", "GET", "/memories/1", None, None, connection)
            tell("/memories/{memory_id}", "GET", "/memories/999", None, None, connection)
            tell("/decisions", "GET", "/decisions?limit=5", None, None, connection)
            tell("other", "GET", "/nowhere/at/all", None, None, connection)
            connection.close()
        tell("/governor/reset", "POST", "/governor/reset")
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /state HTTP/1.1\r\n\r\n")  # without a host
            assert client.recv(9999).startswith(b"HTTP/1.1 400 ")
        answered["other", "400"] += 1

    def counted() -> dict[tuple[str, str], float]:
        samples = scrape(server)
        labels = [dict(labels) for name, labels in samples if name == "mlsdm_requests_total"]
        return {
            (one["route"], one["status"]): value(samples, "mlsdm_requests_total", **one)
            for one in labels
            if one["route"] not in ("/livez", "/health/metrics", "/health/detailed")
            and value(samples, "mlsdm_requests_total", **one)
        }

    def replaced(old: list[int]) -> bool:
        # A successor takes the first row that is free, so that of a killed one may go on naming it.
        now = {pid for pid in server.workers(server.block()) if psutil.pid_exists(pid)}
        return len(now) == 2 and not now & set(old)

    ask()
    server.reload()
    ask()
    for pid in (old := server.workers(server.block())):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: replaced(old))
    ask()

    assert sum(answered.values()) == 42
    assert answered == counted()


def test_memory_is_that_of_all_processes(serve: Callable[..., LiveServer]) -> None:
    """Proportional, so that the block counts once; sampled by the controller a few seconds ago at most."""
    server = serve(MLSDM_DIMENSION="384", MLSDM_CAPACITY="20000")

    def told_and_seen() -> tuple[float, float]:
        arbiter = psutil.Process(server.pid)
        members = (arbiter, *arbiter.children(recursive=True))
        return value(scrape(server), "memory_usage_bytes"), sum(one.memory_full_info().pss for one in members)

    def agree() -> bool:
        told, seen = told_and_seen()
        return abs(told - seen) < 10e6

    eventually(agree)
    told, _ = told_and_seen()
    assert 90e6 < told < 300e6


def test_lock_holds_are_sampled(serve: Callable[..., LiveServer]) -> None:
    """One section of 64; their mean is a length that a section can have."""
    server = serve()
    connection = server.connect()
    for _ in range(640):
        server.event([1.0] * 8, 1.0, connection)
    connection.close()

    samples = scrape(server)
    holds = value(samples, "mlsdm_lock_holds_sampled_total")

    assert 5 <= holds <= value(samples, "mlsdm_lock_acquisitions_total") / 64
    assert 1e-8 < value(samples, "mlsdm_lock_hold_seconds_total") / holds < 1


@needs("promtool")
def test_promtool_accepts_the_exposition(still_server: LiveServer) -> None:
    """Names, types and help texts are as Prometheus' own lint wants them."""
    accepted(still_server)
    text = still_server.get("/health/metrics").body

    linted = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)

    assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")


def test_no_series_names_a_client(still_server: LiveServer) -> None:
    """Labels come from closed sets, so the number of series does not grow with traffic."""
    accepted(still_server)
    still_server.get("/nope")
    scrape(still_server)  # its own answer has a series, too
    before = set(scrape(still_server))
    for number in range(20):
        still_server.get(f"/nope/{number}", **{"X-API-Key": str(number), "User-Agent": str(number)})

    after: Any = set(scrape(still_server))

    assert after == before
    assert {name for _, labels in after for name, _ in labels} == {
        "le",
        "route",
        "status",
        "outcome",
        "level",
        "child",
        "reason",
        "kind",
        "version",
        "boot_id",
        "log_id",
        "code",
        "module",
        "state",
        "result",
        "tier",
    }


def test_each_child_says_whether_it_runs_how_often_it_began_and_why_it_last_ended() -> None:
    """One that was to run once and has finished is neither up nor down."""
    states = {
        "runs": ChildState(7, 1, "none", 0),
        "again": ChildState(8, 3, "silent", -9),
        "down": ChildState(0, 5, "exited", 1),
        "unstarted": ChildState(0, 0, "not_started", 0),
        "done": ChildState(0, 1, "finished", 0),
    }

    up, starts, ends = ChildrenCollector(lambda: states).collect()

    assert [(sample.labels["child"], sample.value) for sample in up.samples] == [
        ("runs", 1), ("again", 1), ("down", 0), ("unstarted", 0),
    ]  # fmt: skip
    assert [sample.value for sample in starts.samples] == [1, 3, 5, 0, 1]
    assert [(sample.labels["child"], sample.labels["reason"], sample.value) for sample in ends.samples] == [
        ("again", "silent", 1), ("down", "exited", 1), ("unstarted", "not_started", 1), ("done", "finished", 1),
    ]  # fmt: skip


def test_the_controller_is_a_child(still_server: LiveServer) -> None:
    """It runs, and has begun once."""
    samples = scrape(still_server)

    assert value(samples, "mlsdm_child_up", child="controller") == 1
    assert value(samples, "mlsdm_child_starts_total", child="controller") == 1


def test_rejections_and_refusals_are_counted_by_the_tier_of_the_key(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    """Single events and batches; an answer that is repeated for an idempotency key was counted before."""
    path = keys.write(tmp_path / "keys.yaml", "slow", "quick")
    server = serve(MLSDM_SECURITY__KEYS_PATH=str(path), MLSDM_SECURITY__RATE_LIMITING__ENABLED="true")
    octets = {"Content-Type": "application/octet-stream"}
    event, batch = np.ones(8, "<f4").tobytes(), np.array([0.1] * 10).tobytes() + np.ones((10, 8), "<f4").tobytes()

    def send_batch() -> int:
        return server.request("POST", "/events", batch, keys.bearer("slow") | octets).status

    assert send_batch() == 200
    eventually(lambda: send_batch() == 429)
    for moral in ("0.1", "0.1", "1.0"):
        fields = keys.bearer("quick") | octets | {"Moral-Value": moral, "Idempotency-Key": moral}
        assert server.request("POST", "/event", event, fields).status == 200

    samples = scrape(server)
    limited, rejected = (
        {tier: value(samples, name, tier=tier) for tier in TIERS}
        for name in ("mlsdm_rate_limited_total", "mlsdm_events_rejected_total")
    )
    assert limited == {
        "standard": value(samples, "mlsdm_refusals_total", code="rate_limit_exceeded"),
        "high": 0,
        "bulk": 0,
    }
    assert limited["standard"] >= 1
    assert rejected["standard"] == value(samples, "rejected_events_count") - 1
    assert (rejected["high"], rejected["bulk"]) == (1, 0)
