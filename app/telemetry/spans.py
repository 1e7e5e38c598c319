"""The spans: what a collector of OpenTelemetry is told of events, batches, recalls and steps of the rhythm.

A span of a request begins when the request was complete, as every other latency here does, and ends with its encoded
answer. Its parent is the caller's `traceparent` (app/httpd/request_names.py has read it); without one a trace begins
here. The span's own id is what the answer's `traceparent` says, and log lines have its trace's id, so all three tell of
the same thing. Whether a span is recorded is the caller's decision where there is one (its flag `sampled`), else that
of
`sample_ratio`. It is made here and not by a sampler of OpenTelemetry, which makes ids, a context and an object for each
span that nobody will see: 22 µs. A request that is not recorded is served as if tracing were off.

What a span says about its request is read off the answer: whether it was accepted, its number, the phase and the
threshold. So nothing on the way to an answer knows of spans, and a span cannot say anything else than what the client
was told. Never in a span: a payload, a vector, a moral value, a credential, the address or the key of a client, and any
text that a client has chosen, but for the id of its request. (Its `tracestate` is not passed on either: this service
calls nobody.)

A step of the rhythm is a trace of its own, in the controller.

Spans are sent by a thread of OpenTelemetry's, in batches, from a queue of bounded length (OTEL_BSP_* variables). When
the collector is slow, or gone, the queue fills, the oldest spans are lost, and the log says so: no request waits. At
the end of a process what is queued is sent, for at most FLUSH_SECONDS_MAX: less than the second that the arbiter grants
its controller.

PERF: a recorded span is 130 to 150 µs of its worker's CPU, the thread that sends it included, beside an event of 80 to
90 (raw, 384 floats, one client that waits for each answer): an event costs 2.6 times as much when all are recorded, and
1.09 times when one of a hundred is. The service takes 21 MB more. With tracing off nothing here is imported
(app/telemetry/tracing_setup.py).
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
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

FLUSH_SECONDS_MAX: Final = 0.5
_SAMPLED: Final = 1  # the flag (Trace Context, level 2, §3.2.2.5)
_FAILED: Final = 400
_OURS: Final = 500

_NO_PARENT: Final = Context()  # an empty one: nothing that happens to be current in a thread is a parent
Serve = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]
Attributes = Mapping[str, AttributeValue]


class _Event(msgspec.Struct):
    """What an answer to /event says that a span repeats."""

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
    """An answer to /events: how many, and the last of them as if it had come alone."""

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
    """An answer to /recall: how much was found in how much, and when."""

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

    def __init__(self, tracing: Tracing, boot_id: str, part: str, chance: Callable[[], float] = random.random) -> None:
        """`part` is what this process is: `worker` or `controller`; `chance` returns numbers in [0, 1). To be made
        after the fork: a thread begins here.
        """
        endpoint = f"{tracing.endpoint.rstrip('/')}/v1/traces" if tracing.endpoint else None
        self._ratio = tracing.sample_ratio
        self._chance = chance
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=_resource(boot_id, part), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("mlsdm", VERSION)

    def wrap_application(self, serve: Serve) -> Serve:
        """Return `serve`, a WSGI application, with a span around each event, batch and recall."""

        def traced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path not in _ANSWERS or environ["REQUEST_METHOD"] != "POST":
                return serve(environ, start_response)
            trace: TraceContext | None = environ.get(TRACE)
            if not (int(trace.flags, 16) & _SAMPLED if trace else self._chance() < self._ratio):
                return serve(environ, start_response)
            return _recorded(self._begin(environ, path, trace), serve, environ, start_response)

        return traced

    def _begin(self, environ: WSGIEnvironment, path: str, trace: TraceContext | None) -> Span:
        """Begin the span of a request that came under `trace`, and have answer and log say its ids."""
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

    def wrap_steps(self, controller: Controller) -> None:
        """Put a span around each step of a controller's rhythm."""
        step = controller.step

        def traced(now_ns: int, epoch: int) -> Any:
            if self._chance() >= self._ratio:
                return step(now_ns, epoch)
            with self._tracer.start_as_current_span("tick", context=_NO_PARENT, record_exception=False) as span:
                entry = step(now_ns, epoch)
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
        """Send what is queued, and wait for that no longer than is granted."""
        # On a thread, because OpenTelemetry would wait half a minute for a collector that does not answer.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS_MAX)


def _recorded(span: Span, serve: Serve, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Serve a request and end its span with what its answer says."""
    begun: list[str] = []

    def starting(status: str, *rest: Any) -> Any:
        begun.append(status)
        return start_response(status, *rest)

    try:
        chunks = serve(environ, starting)
    except BaseException as error:
        span.set_attributes({"http.response.status_code": _OURS, "error.type": type(error).__name__})
        span.set_status(StatusCode.ERROR)
        span.end()
        raise
    status = int(begun[-1][:3])
    span.set_attributes({"http.response.status_code": status, "mlsdm.request_id": environ[REQUEST_ID]})
    if status >= _OURS:
        span.set_status(StatusCode.ERROR)
    body = b"".join(chunks)
    span.set_attributes(_told(environ["PATH_INFO"], status, body))
    span.end()
    return [body]


def _told(path: str, status: int, body: bytes) -> Attributes:
    """Return what an answer says that belongs into its span."""
    return (_problem_of(body) if status >= _FAILED else _ANSWERS[path](body)).attributes()


def _parent(trace: TraceContext) -> Context:
    """Return the caller's span as OpenTelemetry wants it."""
    parent = SpanContext(
        int(trace.trace_id, 16), int(trace.parent_id, 16), is_remote=True, trace_flags=TraceFlags(int(trace.flags, 16))
    )
    return set_span_in_context(NonRecordingSpan(parent), _NO_PARENT)


def _resource(boot_id: str, part: str) -> Resource:
    """Return who tells all this; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES may say more, and another name."""
    resource = Resource.create(
        {
            "service.version": VERSION,
            "service.instance.id": f"{boot_id}.{os.getpid()}",
            "mlsdm.boot_id": boot_id,
            "mlsdm.part": part,
        }
    )
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "mlsdm"}))
    return resource
