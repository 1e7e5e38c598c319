"""The application that Gunicorn serves: `gunicorn -c gunicorn.conf.py app.main:app`.

A composition root. `app` exists from import on, so that it can be preloaded and shared by fork; it opens the block,
claims a worker row and builds the routes in `open`, which the worker calls after the fork. To add a route, add a file
to app/routes and a line to app/routes/table.py.
"""

import logging
import mimetypes
import os
import time
from asyncio import Future
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NoReturn
from wsgiref.types import StartResponse, WSGIEnvironment

import falcon
from falcon.routing import DefaultRouter

from app.api.access.audit_log import AuditLog
from app.api.access.client import Client
from app.api.access.cross_origin import CrossOrigin
from app.api.access.gate import Authenticator, Gate, KeyAuthenticator, NoAuthenticator, is_loopback
from app.api.access.quotas import Quotas, refund
from app.api.codec.body_sizes import refuse_above
from app.api.context import Context
from app.api.deferred import DeferredAnswers
from app.api.fast_path import FastPath, ReraiseMiddleware
from app.api.operation import Operation, Resource, check_operations
from app.api.problem import on_store_error, write_problem
from app.api.route_path import route_path
from app.httpd.application import IN_PIECES, IN_TURN, INLINE, POOL, Chunks
from app.httpd.problem_document import problem_document
from app.httpd.request import ADDRESS, CLIENT, RAISED, REFUSAL_LINES
from app.httpd.socket_address import peer_of
from app.lifecycle.context import make_context
from app.lifecycle.contract import Module, ModuleContext
from app.lifecycle.module_thread import Published
from app.lifecycle.registry import Registry
from app.processes.connection_counts import ConnectionCounts
from app.processes.lock_backoff import LockBackoff
from app.routes.metrics import ArbiterCollector
from app.routes.table import routes
from app.server import server
from app.telemetry import tracing_setup
from app.telemetry.answer_counts import AnswerCounts, OnWritten
from app.telemetry.latency_histogram import LatencyHistogram
from app.telemetry.rejection_counts import RejectionCounts
from app.telemetry.series import (
    abandoned_counter,
    event_latency_histogram,
    measure_into_files_of,
    rate_limited_counter,
    recall_latency_histogram,
    refusal_counter,
    rejected_counter,
    request_counter,
    worker_counter,
)
from app.telemetry.stderr_sink import STDERR, sink_of
from core.clock import boot_clock
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.settings.config import cors_origins, trusted_proxies
from core.settings.tiers import tiers
from shm import process
from shm.errors import Busy, StoreError
from shm.layout import NO_ROW
from shm.recall import Recall
from shm.store import Store

log = logging.getLogger("mlsdm.worker")


class Application:
    """A WSGI application with the hooks that the evented worker calls."""

    def __init__(self) -> None:
        self.serve: Any = self._refuse_before_open
        self._routes: dict[str, Resource] = {}
        self._modules: Registry
        # (method, template) → how the operation is answered, where that is not INLINE.
        self._ways: dict[tuple[str, str], int] = {}
        # Whether `_ways` has a template with parameters; then the path of a request must be matched to its template.
        self._has_template_ways = False
        self.inline: frozenset[str] = frozenset()  # paths that are answered INLINE whatever the method
        self.compressed: set[str] = set()  # paths whose large answers may be sent in gzip
        self.probes: set[str] = set()  # paths that are answered even above the cap of connections
        self.on_answer: Callable[[WSGIEnvironment, str], OnWritten | None] = lambda _environ, _status: None
        self.request_sample_ratio = 1.0
        self._router = DefaultRouter()
        self._deferred = DeferredAnswers(0)
        self._cross_origin: CrossOrigin | None = None  # where origins are named

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Chunks | Future[Chunks]:
        """Serve one request."""
        answer: Chunks | Future[Chunks] = self.serve(environ, start_response)
        return answer

    @staticmethod
    def _refuse_before_open(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("503 Service Unavailable", [("Retry-After", "1")])
        return []

    def open(self, worker: Any) -> None:
        """Claim a worker row and build the routes, after the fork and before the first connection."""
        block, loaded = server.require()
        block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value, VECTOR_NORM.value)
        block.populate()
        self.worker = worker
        self.block = block
        self.store = Store(block)
        self.row = self.store.claim_row(process.identify_self())
        block.map.row = self.row
        self._row = block.region("rows", self.row)
        self._requests_before = int(self._row.requests)
        worker.occupancy = ConnectionCounts(block, self.row, boot_clock)
        context = self._make_context(worker)
        self._audit = AuditLog()
        quotas = None
        if loaded.config.security.rate_limiting.enabled:
            quotas = Quotas(block, tiers(loaded.config), boot_clock)
            context.charge = quotas.charge
        authenticators: list[Authenticator] = [] if loaded.keyring.is_open else [KeyAuthenticator(loaded.keyring)]
        if server.require_plan().guards:
            authenticators.append(NoAuthenticator())  # also when the module fails: then the server stays closed
        origins = cors_origins(loaded.config)
        self._gate = Gate(
            authenticators, trusted_proxies(loaded.config), quotas, loopback=_listens_locally(worker), origins=origins
        )
        self.request_sample_ratio = loaded.config.observability.logging.sample_ratio
        self._spans = tracing_setup.start_tracing(loaded.config, block, "worker")
        plan = server.require_plan()
        report = plan.report(server.child_states)
        is_usable = lambda name: self._modules.is_usable(name)  # noqa: E731, PLW0108 - the registry is made below
        record = ArbiterCollector(server.record.state, lambda: sink_of(STDERR).lost_lines.count)
        self._routes = routes(context, self._audit, report, is_usable, (record,))
        self._deferred = DeferredAnswers(loaded.config.server.deferred_max, abandoned_counter().inc)
        self._modules = Registry(
            plan.modules, plan.board, self.row,
            migrations=plan.migrations, context_of=self._module_context, routes=self._routes, wrap=self._deferred.wrap,
            wake=lambda: worker.loop.call_soon_threadsafe(self._add_published),
        )  # fmt: skip
        self._lock_backoff = LockBackoff(block, worker.loop)
        self._api = self._make_falcon_app()
        self.serve = FastPath(self._routes, self._gate, self._deferred.in_front_of(self._api))
        if origins:
            self.serve = self._cross_origin = CrossOrigin(self.serve, origins)
        if self._spans is not None:
            self.serve = self._spans.wrap_application(self.serve)
        worker.close_seconds = self._modules.close_seconds
        self._modules.start()
        self._add_published()
        self.on_beat()
        log.info("worker pid=%d serves from row %d", os.getpid(), self.row)

    def _make_context(self, worker: Any) -> Context:
        """Open the files into which this worker measures, and return what its routes share."""
        measure_into_files_of(self.row)
        worker_counter().inc()
        events, recalls = LatencyHistogram(event_latency_histogram()), LatencyHistogram(recall_latency_histogram())
        latencies = {"/event": events, "/events": events, "/recall": recalls}
        self.on_answer = AnswerCounts(request_counter(), latencies, self.route_of).count
        context = Context(
            server.require()[1].config,
            self.store,
            Recall(self.block),
            events,
            boot_clock,
            lambda: server.draining,
            worker.cfg.workers,
        )
        self._refusals = refusal_counter()
        self._rate_limited = rate_limited_counter()
        context.count_rejected = RejectionCounts(rejected_counter()).add
        return context

    def _make_falcon_app(self) -> Any:
        self._router = DefaultRouter()
        api: Any = falcon.App(middleware=[ReraiseMiddleware(), self._gate, self._modules], router=self._router)  # type: ignore[arg-type] # it takes our resources only
        api.req_options.auto_parse_qs_csv = False
        api.set_error_serializer(self._refuse)
        api.add_error_handler(Exception, _reraise)
        api.add_error_handler(StoreError, on_store_error)
        for path, resource in self._routes.items():
            self._add_route(api, path, resource)
        api.add_sink(self._gate.no_route, "")  # every path, `*` too
        return api

    def _add_route(self, api: Any, path: str, resource: Resource) -> None:
        """Route a path to a resource, and note for each operation how it is answered."""
        check_operations(path, resource)
        api.add_route(path, self._deferred.wrap(resource))
        ways = {(method, path): _way_of(operation) for method, operation in resource.operations.items()}
        self._ways |= {key: way for key, way in ways.items() if way != INLINE}
        if any(operation.compressed for operation in resource.operations.values()):
            self.compressed.add(path)
        if any(operation.probe for operation in resource.operations.values()):
            self.probes.add(path)
        if not ways.keys() & self._ways.keys():
            self.inline |= {path}
        elif "{" in path:
            self._has_template_ways = True

    def _module_context(self, module: Module) -> ModuleContext:
        """Return the context that a module gets in this worker."""
        _, loaded = server.require()
        return make_context(
            module, "worker", server.require_plan().sections[module.name], loaded.config,
            operations=lambda: dict(self._routes), span=self._spans.span if self._spans is not None else nullcontext,
        )  # fmt: skip

    def _add_published(self) -> None:
        """Add the routes and authenticators that modules have published; on the loop."""
        self._modules.add_published(self._add_module)

    def _add_module(self, published: Published) -> None:
        for path, resource in published.routes.items():
            self._add_route(self._api, path, resource)
            self._routes[path] = resource
        for authenticator in published.authenticators:
            self._gate.add(authenticator)

    def _refuse(self, request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
        """Falcon error serialiser: answer, count and audit a refusal of a route, and refund its tokens.

        When the lock was not acquired in time, requests stop waiting for it until it is free again (LockBackoff).
        """
        if isinstance(error.__cause__, Busy):
            self._lock_backoff.start()
        code, field = write_problem(response, error, problem_document)
        refund(request.env)
        self._refusals.labels(code).inc()
        client: Client | None = request.env.get(CLIENT)
        if code == "rate_limit_exceeded" and client is not None:
            self._rate_limited.labels(client.tier).inc()
        self._audit.record_refusal(request.env, error.status_code, code, field)
        # Falcon holds the error in a frame that the error's traceback refers to. This reference cycle would keep the
        # request and its body, up to 16 MB, in memory until the garbage collector runs.
        error.__traceback__ = None

    def on_refusal(self, code: str, environ: WSGIEnvironment, status: int) -> None:
        """Count and audit a request that the connection refused before any route. Called by the worker."""
        self._refusals.labels(code).inc()
        environ.setdefault(ADDRESS, self._gate.address_of(environ))
        if self._cross_origin is not None:
            environ[REFUSAL_LINES] = self._cross_origin.lines(environ)
        self._audit.record_refusal(environ, status, code)

    def wants_body(self, environ: WSGIEnvironment) -> bool:
        """Return whether the client should send its body: False when the request would be refused anyway.

        Asked for a body that the client holds back (Expect: 100-continue), and for one that is large.
        """
        found: Any = self._router.find(route_path(environ["PATH_INFO"]))
        operation: Operation | None = found[0].operations.get(environ["REQUEST_METHOD"]) if found else None
        if operation is None or operation.role is None:  # an open operation reads no body
            return False
        try:
            self._gate.check(environ, operation.role)
            refuse_above(int(environ.get("CONTENT_LENGTH", 0)), operation.body_size_max)
            self._gate.admit(environ, operation)
        except Exception as error:  # noqa: BLE001 - the fast path raises it again
            environ[RAISED] = error
            return False
        refund(environ)  # it is charged again when the body has arrived
        return True

    def way_of(self, method: str, path: str) -> int:
        """Return how a request is answered (`app.httpd.application`). HEAD does what GET does."""
        template: str | None = route_path(path)
        if self._has_template_ways:
            template = self.route_of(path)
        return self._ways.get(("GET" if method == "HEAD" else method, template or ""), INLINE)

    def route_of(self, path: str) -> str | None:
        """Return the template of a path's route, for logs and metrics; requests are not routed by it."""
        found = self._router.find(route_path(path))
        return str(found[3]) if found else None

    def on_beat(self) -> None:
        """Write the heartbeat into the worker's row, flush the audit log, check the modules. Four times a second."""
        self._audit.flush()
        self._row.heartbeat_ns = boot_clock()
        self._row.requests = self._requests_before + self.worker.nr
        self._modules.report_stuck(time.monotonic())

    def close(self) -> None:
        """Release the worker row, after the last request."""
        self.on_beat()
        self._modules.close(self.worker.seconds_left)
        self._audit.close()
        try:
            self.store.release_row(self.row, process.identify_self())
        except StoreError:  # the lock is stuck, or lost
            log.warning("row %d was left to be claimed from the dead", self.row)
        if self._spans is not None:
            self._spans.close()


def _listens_locally(worker: Any) -> bool:
    """Return whether only this machine can connect to a worker, by TCP.

    No page in a browser can open a Unix socket, and a proxy that does passes on the names of its own clients.
    """
    names = [listener.sock.getsockname() for listener in worker.sockets]
    hosts = [peer_of(name)[0] for name in names if isinstance(name, tuple)]
    return bool(hosts) and all(map(is_loopback, hosts))


def _way_of(operation: Operation) -> int:
    """Return how an operation is answered (`app.httpd.application`)."""
    if operation.blocks:
        return POOL
    if operation.in_pieces:
        return IN_PIECES
    return IN_TURN if operation.in_turn else INLINE


def _reraise(_request: falcon.Request, _response: falcon.Response, error: Exception, _params: Any) -> NoReturn:
    """Raise an unexpected error again: app/httpd/wsgi_call.py logs it with its request and answers 500."""
    raise error


# Falcon copies these tables. They are made here, before the fork, so that not every worker makes them. The mime.types
# files of the machine are left out: no route needs them, and every worker would copy the pages with their entries.
mimetypes.knownfiles.clear()
mimetypes.init()
app = Application()
