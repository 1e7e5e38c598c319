"""Spans: what real workers and a real controller send to a collector, and what they never send."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from app.telemetry.spans import FLUSH_SECONDS_MAX
from core import startup
from testing import keys
from testing.bodies import EXAMPLE
from testing.eventually import eventually
from testing.live_server import ROOT, LiveServer
from tests.app.telemetry.collector import Collector, Received
from tests.conftest import SMALL, Serve

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SERVER = 2  # the kind of a span that answers somebody
INTERNAL = 1
ON = {"MLSDM_OBSERVABILITY__TRACING__ENABLED": "true", "OTEL_BSP_SCHEDULE_DELAY": "50"}  # ms between two batches


def to(url: str) -> dict[str, str]:
    """Return the variables of a server that sends to the collector at `url`."""
    return {**ON, "MLSDM_OBSERVABILITY__TRACING__ENDPOINT": url}


def called(flags: str = "01", trace_id: str = TRACE_ID) -> dict[str, str]:
    """Return the header of a caller that traces."""
    return {"traceparent": f"00-{trace_id}-{PARENT_ID}-{flags}"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A receiver."""
    with Collector() as receiver:
        yield receiver


class Traced(NamedTuple):
    """A server that several tests share, and what receives its spans."""

    server: LiveServer
    collector: Collector

    def await_spans(self) -> None:
        """Wait until both workers have sent all that they had: a span that begins now is the last of each batch."""
        for connection in self.server.connect_to_both_workers():
            trace_id = os.urandom(16).hex()
            body = np.ones(8, "<f4").tobytes()
            headers = {"Content-Type": "application/octet-stream", "Moral-Value": "0.9", **called(trace_id=trace_id)}
            assert self.server.request("POST", "/event", body, headers, connection).status == 200
            eventually(lambda trace_id=trace_id: trace_id in {span.trace_id for span in self.collector.spans})  # type: ignore[misc]  # early binding
            connection.close()


def start_traced(directory: Path, **environ: str) -> Iterator[Traced]:
    """Run a server and its collector."""
    with Collector() as receiver:
        server = LiveServer(directory, {**SMALL, **to(receiver.url), **environ}).start()
        yield Traced(server, receiver)
        server.stop()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A server that records every trace and logs every request."""
    yield from start_traced(tmp_path_factory.mktemp("recorded"), LOG_LEVEL="DEBUG")


@pytest.fixture(scope="module")
def unrecorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A server that records no trace that begins in it; its rhythm is quick."""
    yield from start_traced(
        tmp_path_factory.mktemp("unrecorded"),
        MLSDM_OBSERVABILITY__TRACING__SAMPLE_RATIO="0",
        MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS="0.05",
    )


def told(collector: Collector, name: str, count: int = 1) -> list[Received]:
    """Return the spans of a name, once there are so many; never more."""
    found: list[Received] = eventually(lambda: len(now := collector.named(name)) >= count and now)
    assert len(found) == count
    return found


def test_the_span_of_an_event_is_in_its_callers_trace(recorded: Traced) -> None:
    """Parent, decision and times; the answer names the very span."""
    server, collector = recorded
    collector.spans.clear()
    before = time.time_ns()

    answer = server.post("/event", {"event_vector": EXAMPLE, "moral_value": 0.9}, **called(), **{"X-Request-ID": "r-1"})

    [span] = told(collector, "POST /event")
    decision = answer.json
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{span.span_id}-01"
    assert (span.trace_id, span.parent_id, span.kind, span.failed) == (TRACE_ID, PARENT_ID, SERVER, False)
    assert before <= span.start < span.end <= time.time_ns()
    assert span.attributes == {
        "http.request.method": "POST", "http.route": "/event", "http.response.status_code": 200,
        "mlsdm.request_id": "r-1", "mlsdm.accepted": True, "mlsdm.sequence": decision["sequence"],
        "mlsdm.position": decision["position"], "mlsdm.phase": decision["current_phase"],
        "mlsdm.theta_before": decision["threshold_before"], "mlsdm.theta": decision["moral_filter_threshold"],
    }  # fmt: skip
    assert span.resource["service.name"] == "mlsdm"
    assert span.resource["service.version"] == server.get("/health/detailed").json["version"]
    assert span.resource["mlsdm.boot_id"] == decision["boot_id"]
    assert span.resource["mlsdm.log_id"] == decision["log_id"]
    assert span.resource["mlsdm.part"] == "worker"


def test_a_batch_and_a_recall_have_spans(recorded: Traced) -> None:
    """How many events, with the last decision; how many matches, in how many memories."""
    server, collector = recorded
    collector.spans.clear()
    events = [{"event_vector": EXAMPLE, "moral_value": moral} for moral in (0.95, 0.1, 0.95)]

    batch = server.post("/events", events, **called()).json
    recall = server.post("/recall", {"vector": EXAMPLE, "top_k": 1}, **called()).json

    [span] = told(collector, "POST /events")
    assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)
    assert {
        "mlsdm.events": 3, "mlsdm.accepted": 2, "mlsdm.rejected": 1,
        "mlsdm.sequence": batch["results"][-1]["sequence"], "mlsdm.phase": batch["results"][-1]["current_phase"],
        "mlsdm.theta": batch["results"][-1]["moral_filter_threshold"],
    }.items() <= span.attributes.items()  # fmt: skip
    [span] = told(collector, "POST /recall")
    assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)
    assert {
        "mlsdm.matches": 1,
        "mlsdm.scanned": recall["scanned"],
        "mlsdm.position": recall["as_of"],
    }.items() <= span.attributes.items()


def test_every_event_of_every_worker_arrives_once(serve: Serve, collector: Collector) -> None:
    """From both workers, each under its own name, even those that are queued when a worker is replaced."""
    server = serve(**to(collector.url), WORKERS="2")
    sequences = []
    for connection in server.connect_to_both_workers():
        sequences += [server.event([1.0] * 8, 0.9, connection)["sequence"] for _ in range(100)]
        connection.close()
    os.kill(server.pid, signal.SIGHUP)

    spans = told(collector, "POST /event", 200)

    assert sorted(sequences) == sorted(span.attributes["mlsdm.sequence"] for span in spans)
    assert len({span.span_id for span in spans}) == 200
    assert len({span.resource["service.instance.id"] for span in spans}) == 2
    assert all(span.parent_id == "" for span in spans)  # nobody called


def test_the_controllers_steps_have_spans(serve: Serve, collector: Collector) -> None:
    """Each step of the rhythm once, in order, with the phase that it led to; even after a reload."""
    server = serve(**to(collector.url), MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS="0.05")

    spans = eventually(lambda: len(now := collector.named("tick")) >= 12 and now)

    steps = [span.attributes["mlsdm.step"] for span in spans]
    assert steps == list(range(1, len(steps) + 1))
    assert {span.attributes["mlsdm.phase"] for span in spans} == {"wake", "sleep"}
    assert all(span.kind == INTERNAL and span.parent_id == "" for span in spans)
    assert all(span.resource["mlsdm.part"] == "controller" for span in spans)
    positions = [span.attributes["mlsdm.position"] for span in spans]
    assert positions == sorted(positions)
    assert server.state()["moral_filter_threshold"] == spans[-1].attributes["mlsdm.theta"]


@pytest.mark.parametrize(("flags", "count"), [("00", 0), ("01", 1)])
def test_the_callers_sampled_flag_decides_what_is_recorded(
    recorded: Traced, unrecorded: Traced, flags: str, count: int
) -> None:
    """Whatever the ratio says of traces that begin here; the answer goes on with the caller's trace either way."""
    other = unrecorded if count else recorded
    other.collector.spans.clear()

    answer = other.server.post("/event", {"event_vector": EXAMPLE, "moral_value": 0.9}, **called(flags))
    other.await_spans()

    assert answer.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert answer.headers["traceparent"].endswith(f"-{flags}")
    assert count == sum(span.trace_id == TRACE_ID for span in other.collector.named("POST /event"))


def test_a_share_of_the_traces_that_begin_here_is_recorded(unrecorded: Traced) -> None:
    """None at 0: neither of requests nor of steps."""
    server, collector = unrecorded
    collector.spans.clear()
    step = server.store().state().scalars.step
    server.event([1.0] * 8, 0.9)
    eventually(lambda: server.store().state().scalars.step > step + 3)
    unrecorded.await_spans()

    assert [span.name for span in collector.spans] == ["POST /event"] * 2  # those that were waited for


def test_the_span_of_a_refusal_has_its_code(serve: Serve, collector: Collector) -> None:
    """A mistake of the client is not an error of the server, and no span has what it sent."""
    server = serve(**to(collector.url), API_KEY=keys.API_KEY)
    secret = "a-secret-in-a-payload"
    key = {"X-API-Key": keys.API_KEY}
    bad = {"event_vector": EXAMPLE, "moral_value": 7, "payload": secret}
    assert server.post("/event", bad, **called(), **key).status == 422
    assert server.post("/event", bad, **called(), **{"X-API-Key": "guess"}).status == 401
    good = {"event_vector": EXAMPLE, "moral_value": 0.9, "payload": secret}
    tracestate = {"tracestate": "vendor=a-secret-of-others", "Idempotency-Key": "a-secret-key"}
    assert server.post("/event", good, **called(), **key, **tracestate).status == 200

    spans = told(collector, "POST /event", 3)

    assert [(span.attributes["http.response.status_code"], span.attributes.get("error.type")) for span in spans] == [
        (422, "moral_value_out_of_range"),
        (401, "unauthorised"),
        (200, None),
    ]
    assert not any(span.failed for span in spans)
    everything = repr(collector.spans)
    assert not [
        word for word in (secret, keys.API_KEY, "guess", "secret-of-others", "secret-key") if word in everything
    ]


def test_probes_and_scrapes_are_not_traced(recorded: Traced) -> None:
    """Only events and recalls are traced."""
    recorded.collector.spans.clear()
    for path in ("/livez", "/readyz", "/health/detailed", "/metrics", "/state", "/decisions", "/event"):
        recorded.server.get(path, **called())
    recorded.await_spans()

    assert {"tick"} >= {span.name for span in recorded.collector.spans if span.name != "POST /event"}
    assert TRACE_ID not in {span.trace_id for span in recorded.collector.spans}


def test_log_lines_have_the_trace(recorded: Traced) -> None:
    """One that begins here, too: from the line of a request to its span, and back."""
    server, collector = recorded
    collector.spans.clear()

    server.post("/event", {"event_vector": EXAMPLE, "moral_value": 0.9}, **{"X-Request-ID": "in-the-log"})

    [span] = told(collector, "POST /event")
    [line] = [line for line in server.log.splitlines() if "request_id=in-the-log" in line]
    assert f"trace_id={span.trace_id}" in line


def test_standard_variables_set_endpoint_and_service_name(serve: Serve, collector: Collector) -> None:
    """Endpoint, headers, compression and service name, as with any other server."""
    server = serve(
        **ON, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS="authorization=for-the-collector",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip", OTEL_SERVICE_NAME="memory", OTEL_RESOURCE_ATTRIBUTES="team=blue",
    )  # fmt: skip
    server.event([1.0] * 8, 0.9)

    [span] = told(collector, "POST /event")

    assert (span.resource["service.name"], span.resource["team"]) == ("memory", "blue")
    assert all(headers["authorization"] == "for-the-collector" for headers in collector.headers)
    assert all(headers["content-encoding"] == "gzip" for headers in collector.headers)
    assert "for-the-collector" not in server.log


def test_a_process_sends_its_queued_spans_before_it_ends(serve: Serve, collector: Collector) -> None:
    """A server that stops has sent all spans, however long a batch would otherwise wait."""
    server = serve(**{**to(collector.url), "OTEL_BSP_SCHEDULE_DELAY": "600000"})
    for _ in range(50):
        server.event([1.0] * 8, 0.9)
    eventually(lambda: server.store().state().scalars.step >= 1)
    assert collector.spans == []

    server.stop()

    assert len(collector.named("POST /event")) == 50
    assert 1 <= len(collector.named("tick"))


def dead() -> Iterator[str]:
    """An address that refuses connections."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"


def silent() -> Iterator[str]:
    """The address of a collector that takes what is sent and never answers."""
    gate = threading.Event()
    with Collector(gate) as receiver:
        yield receiver.url
        gate.set()


@pytest.mark.parametrize("nobody", [dead, silent])
def test_a_missing_collector_delays_no_request(serve: Serve, nobody: Any) -> None:
    """More spans than the queue holds: every event is answered, and the server stops as it should."""
    with_nobody = nobody()
    server = serve(
        **to(next(with_nobody)), OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32", WORKERS="1"
    )
    connection = server.connect()

    decided = [server.event([1.0] * 8, 0.9, connection)["sequence"] for _ in range(500)]
    connection.close()
    block = server.block()
    vitals = block.region("vitals")
    beat = int(vitals.heartbeat_ns)
    eventually(lambda: int(vitals.heartbeat_ns) > beat)
    server.stop()  # in order, with status 0

    assert decided == list(range(1, 501))
    assert "Queue full" in server.log
    assert FLUSH_SECONDS_MAX < 1.0  # what the arbiter grants its controller
    next(with_nobody, None)


def test_a_reload_enables_and_disables_tracing(serve: Serve, collector: Collector, tmp_path: Any) -> None:
    """In workers and controller; no memory is lost by it."""
    path = tmp_path / "mlsdm.yaml"
    text = f"observability: {{tracing: {{enabled: SWITCH, endpoint: '{collector.url}'}}}}\n"
    path.write_text(text.replace("SWITCH", "false"))
    server = serve(CONFIG_PATH=str(path), OTEL_BSP_SCHEDULE_DELAY="50", WORKERS="1")
    server.event([1.0] * 8, 0.9)
    _reloaded(server, path, text.replace("SWITCH", "true"))
    server.event([1.0] * 8, 0.9)
    eventually(lambda: collector.named("tick"))
    _reloaded(server, path, text.replace("SWITCH", "false"))
    server.event([1.0] * 8, 0.9)
    server.stop()

    assert [span.attributes["mlsdm.sequence"] for span in collector.named("POST /event")] == [2]


def _reloaded(server: LiveServer, path: Any, text: str) -> None:
    """Have a server of one worker serve with another configuration."""
    path.write_text(text)
    server.reload()


def test_nothing_of_opentelemetry_is_loaded_when_tracing_is_off(serve: Serve) -> None:
    """No library of OpenTelemetry and none of its threads, in any process."""
    server = serve(WORKERS="1")
    [worker] = server.workers(server.block())

    eventually(lambda: len(os.listdir(f"/proc/{worker}/task")) == 1)  # the thread that opens a module ends soon
    with open(f"/proc/{worker}/maps", encoding="utf-8") as maps:
        assert not [line for line in maps if "google" in line or "protobuf" in line]


def test_tracing_without_its_extra_is_refused_by_name() -> None:
    """At the check of the configuration, and with what would help."""
    program = """if True:
        import os, sys
        sys.modules["opentelemetry"] = None
        from core import startup
        startup.load(None, os.environ)
    """
    variables = {"MLSDM_OBSERVABILITY__TRACING__ENABLED": "true"}

    ended = subprocess.run(
        [sys.executable, "-c", program], env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.stderr.splitlines()[-1] == (
        "core.startup.ConfigurationError: observability.tracing.enabled is true: "
        "expected OpenTelemetry: pip install '.[otel]' in a clone of mlsdm"
    )


@pytest.mark.parametrize(
    "url", ["localhost:4318", "ftp://x", "http://user:word@host:4318", "http://a b", "http://x?y=z"]
)
def test_a_collector_is_named_by_a_plain_url(url: str) -> None:
    """Without credentials, because the configuration is logged."""
    with pytest.raises(startup.ConfigurationError) as error:
        startup.load(None, {"MLSDM_OBSERVABILITY__TRACING__ENDPOINT": url})

    assert "expected an http or https URL without credentials" in str(error.value)
