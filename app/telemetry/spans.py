"""Spans about events, batches, recalls and steps of the rhythm, for a collector of OpenTelemetry.

A span of a request begins when the request is complete, as every other latency here does, and ends with its encoded
answer. Its parent is the caller's `traceparent`; without one a trace begins here. The response's `traceparent` has the
span's id, and log lines have its trace id. A step of the rhythm is a trace of its own, in the controller. The caller's
flag `sampled` decides whether a span is recorded, else `sample_ratio`.

Invariants: the attributes of a span are read from the response, so routes contain no code for spans, and a span cannot
differ from what the client was told. A span never has a payload, a vector, a moral value, a credential, an address, a
key id, or text of a client except its request id. `tracestate` is not passed on: this server calls no other.

Threading, Perf and Rejected: docs/design/tracing.md.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

import msgspec
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from app.httpd.request import RECEIVED_NS, REQUEST_ID, TRACE
from app.httpd.request_names import TraceContext
from core.controller.controller import Controller
from core.phases import PHASE_NAMES
from core.settings.config import Tracing
from core.version import VERSION
from shm.block import Block

FLUSH_SECONDS_MAX: Final = 0.5
_SAMPLED: Final = 1  # the flag `sampled` (Trace Context, level 2, §3.2.2.5)
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500

_NO_PARENT: Final = Context()  # empty, so that no span that is current in a thread becomes the parent
Serve = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]
Attributes = Mapping[str, AttributeValue]


class _Event(msgspec.Struct):
    """The members of an answer to /event that a span repeats."""

    accepted: bool
    sequence: int
    position: int
    current_phase: str
    threshold_before: float
    moral_filter_threshold: float

    def attributes(self) -> Attributes:
        return {
            "mlsdm.accepted": self.accepted,
            "mlsdm.sequence": self.sequence,
            "mlsdm.position": self.position,
            "mlsdm.phase": self.current_phase,
            "mlsdm.theta_before": self.threshold_before,
            "mlsdm.theta": self.moral_filter_threshold,
        }


class _Batch(msgspec.Struct):
    """The members of an answer to /events: the counts, and the last decision as for a single event."""

    results: list[_Event]
    accepted: int
    rejected: int

    def attributes(self) -> Attributes:
        return {
            **self.results[-1].attributes(),
            "mlsdm.accepted": self.accepted,
            "mlsdm.rejected": self.rejected,
            "mlsdm.events": len(self.results),
        }


class _Recall(msgspec.Struct):
    """The members of an answer to /recall: how many matches, among how many memories, at which position."""

    matches: list[msgspec.Raw]
    scanned: int
    as_of: int

    def attributes(self) -> Attributes:
        return {"mlsdm.matches": len(self.matches), "mlsdm.scanned": self.scanned, "mlsdm.position": self.as_of}


class _Problem(msgspec.Struct):
    """A problem document."""

    code: str

    def attributes(self) -> Attributes:
        return {"error.type": self.code}


_ANSWERS: Final[Mapping[str, Callable[[bytes], _Event | _Batch | _Recall]]] = {
    "/event": msgspec.json.Decoder(_Event).decode,
    "/events": msgspec.json.Decoder(_Batch).decode,
    "/recall": msgspec.json.Decoder(_Recall).decode,
}
_problem_of: Final = msgspec.json.Decoder(_Problem).decode


class Spans:
    """The tracer of one process."""

    def __init__(self, tracing: Tracing, block: Block, part: str, chance: Callable[[], float] = random.random) -> None:
        """`part` is `worker` or `controller`; `chance` returns numbers in [0, 1). Make it after the fork: it starts a
        thread.
        """
        endpoint = f"{tracing.endpoint.rstrip('/')}/v1/traces" if tracing.endpoint else None
        self._ratio = tracing.sample_ratio
        self._chance = chance
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=_resource(block, part), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("mlsdm", VERSION)

    def wrap_application(self, serve: Serve) -> Serve:
        """Return a WSGI application that serves like `serve`, with a span around each event, batch and recall."""

        def traced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path not in _ANSWERS or environ["REQUEST_METHOD"] != "POST":
                return serve(environ, start_response)
            trace: TraceContext | None = environ.get(TRACE)
            if not (int(trace.flags, 16) & _SAMPLED if trace else self._chance() < self._ratio):
                return serve(environ, start_response)
            return _serve_recorded(self._begin(environ, path, trace), serve, environ, start_response)

        return traced

    def _begin(self, environ: WSGIEnvironment, path: str, trace: TraceContext | None) -> Span:
        """Start the span of a request with the caller's `trace`, and put its ids into the environ, for the answer and
        the log.
        """
        span = self._tracer.start_span(
            f"POST {path}",
            context=_parent(trace) if trace else _NO_PARENT,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": path},
            start_time=time.time_ns() - (time.monotonic_ns() - environ[RECEIVED_NS]),
        )
        ours = span.get_span_context()
        environ[TRACE] = TraceContext(
            format_trace_id(ours.trace_id),
            trace.parent_id if trace else "",
            trace.flags if trace else f"{_SAMPLED:02x}",
            format_span_id(ours.span_id),
        )
        return span

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record a span of that name around what happens inside, for the configured share of them."""
        if self._chance() >= self._ratio:
            yield
            return
        with self._tracer.start_as_current_span(name, context=_NO_PARENT, record_exception=False):
            yield

    def wrap_steps(self, controller: Controller) -> None:
        """Put a span around each step of the rhythm of a controller."""
        step = controller.step

        def traced(time_ns: int, epoch: int) -> Any:
            if self._chance() >= self._ratio:
                return step(time_ns, epoch)
            with self._tracer.start_as_current_span("tick", context=_NO_PARENT, record_exception=False) as span:
                entry = step(time_ns, epoch)
                after = entry.after
                span.set_attributes(
                    {
                        "mlsdm.step": after.step,
                        "mlsdm.position": entry.position,
                        "mlsdm.phase_before": PHASE_NAMES[entry.before.phase],
                        "mlsdm.phase": PHASE_NAMES[after.phase],
                        "mlsdm.theta": after.theta,
                        "mlsdm.late_steps": int(controller.vitals.late_steps),
                    }
                )
                return entry

        controller.step = traced

    def close(self) -> None:
        """Send the queued spans, for at most FLUSH_SECONDS_MAX."""
        # On a thread, because OpenTelemetry waits half a minute for a collector that does not answer.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS_MAX)


def _serve_recorded(
    span: Span, serve: Serve, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Serve a request, and end its span with the attributes of its answer."""
    statuses: list[str] = []

    def starting(status: str, *rest: Any) -> Any:
        statuses.append(status)
        return start_response(status, *rest)

    try:
        chunks = serve(environ, starting)
    except BaseException as error:
        span.set_attributes({"http.response.status_code": _SERVER_ERROR, "error.type": type(error).__name__})
        span.set_status(StatusCode.ERROR)
        span.end()
        raise
    status = int(statuses[-1][:3])
    span.set_attributes({"http.response.status_code": status, "mlsdm.request_id": environ[REQUEST_ID]})
    if status >= _SERVER_ERROR:
        span.set_status(StatusCode.ERROR)
    body = b"".join(chunks)
    span.set_attributes(_response_attributes(environ["PATH_INFO"], status, body))
    span.end()
    return [body]


def _response_attributes(path: str, status: int, body: bytes) -> Attributes:
    """Return the attributes that a span takes from its answer."""
    return (_problem_of(body) if status >= _CLIENT_ERROR else _ANSWERS[path](body)).attributes()


def _parent(trace: TraceContext) -> Context:
    """Return the caller's span as a context of OpenTelemetry."""
    parent = SpanContext(
        int(trace.trace_id, 16), int(trace.parent_id, 16), is_remote=True, trace_flags=TraceFlags(int(trace.flags, 16))
    )
    return set_span_in_context(NonRecordingSpan(parent), _NO_PARENT)


def _resource(block: Block, part: str) -> Resource:
    """Return the resource of all spans; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to it and may rename it."""
    resource = Resource.create(
        {
            "service.version": VERSION,
            "service.instance.id": f"{block.boot_id}.{os.getpid()}",
            "mlsdm.boot_id": block.boot_id,
            "mlsdm.log_id": block.log_id,
            "mlsdm.part": part,
        }
    )
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "mlsdm"}))
    return resource
