"""The application that Gunicorn serves: `gunicorn -c gunicorn.conf.py app.main:app`.

A composition root. `app` exists from import on, so that it can be preloaded and shared by fork; it opens the block,
claims a worker row and builds the routes in `open`, which the worker calls after the fork. The table of routes is
`routes`: a new route is a new module and one line.
"""

import logging
import os
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn
from wsgiref.types import StartResponse, WSGIEnvironment

import falcon

from app.auth import Gate
from app.context import Context
from app.decisions import DecisionsResource
from app.events import BatchResource, EventResource
from app.health import DetailedResource, LivenessResource, ReadinessResource
from app.memories import MemoryResource
from app.metrics import MetricsResource, latency_histogram
from app.occupancy import RowOccupancy
from app.patience import Patience
from app.problem import on_store_error, serialise
from app.recall import RecallResource
from app.server import server
from app.state import StateResource
from core.controller import boot_clock
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from shm import process
from shm.layout import NO_ROW
from shm.status import Busy, StoreError
from shm.store import Recall, Store

INLINE_SHADOW_SIZE_MAX = 32_000_000  # bytes that recall may scan on the loop: about 2 ms; above, it goes to the pool

log = logging.getLogger("mlsdm.worker")


class Route(NamedTuple):
    """A path and what answers it; `blocks` sends it to the worker's thread pool."""

    path: str
    resource: Any
    blocks: bool = False


def routes(context: Context) -> list[Route]:
    """Return every route of the service."""
    readiness = ReadinessResource(context)
    metrics = MetricsResource(context)
    large = context.store.block.layout.shadow_stride * context.config.capacity > INLINE_SHADOW_SIZE_MAX
    return [
        Route("/event", EventResource(context)),
        Route("/events", BatchResource(context)),
        Route("/recall", RecallResource(context), blocks=large),
        Route("/memories/{memory_id}", MemoryResource(context)),
        Route("/decisions", DecisionsResource(context)),
        Route("/state", StateResource(context)),
        Route("/health/liveness", LivenessResource()),
        Route("/health/readiness", readiness),
        Route("/health/detailed", DetailedResource(context, readiness)),
        Route("/health/metrics", metrics),
        Route("/livez", LivenessResource()),
        Route("/readyz", readiness),
        Route("/metrics", metrics),
    ]


class Application:
    """A WSGI application with the hooks that the evented worker calls."""

    def __init__(self) -> None:
        self._serve: Any = self._closed
        self._blocking: frozenset[str] = frozenset()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer: Iterable[bytes] = self._serve(environ, start_response)
        return answer

    @staticmethod
    def _closed(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("503 Service Unavailable", [("Retry-After", "1")])
        return []

    def open(self, worker: Any) -> None:
        """Take a place in the block and build the routes: after the fork, before the first connection."""
        block, loaded = server.require()
        block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value, VECTOR_NORM.value)
        block.populate()
        self.worker = worker
        self.block = block
        self.store = Store(block)
        self.row = self.store.claim_row(process.myself())
        block.map.row = self.row
        self._row = block.region("rows", self.row)
        self._requests_before = int(self._row.requests)
        worker.occupancy = RowOccupancy(block, self.row, boot_clock)
        context = Context(
            loaded.config,
            self.store,
            Recall(block),
            self._row,
            latency_histogram(self.row),
            boot_clock,
            lambda: server.leaving,
        )
        table = routes(context)
        api: Any = falcon.App(middleware=[Gate(loaded.api_key)] if loaded.api_key else [])
        api.req_options.auto_parse_qs_csv = False
        api.set_error_serializer(serialise)
        api.add_error_handler(Exception, _reraise)
        api.add_error_handler(StoreError, on_store_error)
        api.add_error_handler(Busy, Patience(block, worker.loop).on_busy)
        for route in table:
            api.add_route(route.path, route.resource)
        self._blocking = frozenset(route.path for route in table if route.blocks)
        self._serve = api
        self.on_beat()
        log.info("worker pid=%d serves from row %d", os.getpid(), self.row)

    def may_block(self, _method: str, path: str) -> bool:
        """Return whether a request goes to the thread pool."""
        return bool(self._blocking) and "/" + path.strip("/") in self._blocking  # the router, too, strips slashes

    def on_beat(self) -> None:
        """Say that the loop turns. Four times a second."""
        self._row.heartbeat_ns = boot_clock()
        self._row.requests = self._requests_before + self.worker.nr

    def close(self) -> None:
        """Give the row back: after the last request."""
        self.on_beat()
        try:
            self.store.release_row(self.row, process.myself())
        except Busy:
            log.warning("row %d was left to be claimed from the dead", self.row)


def _reraise(_request: falcon.Request, _response: falcon.Response, error: Exception, _params: Any) -> NoReturn:
    """Leave what nobody expected to app/exchange.py, which logs it with its request and answers 500."""
    raise error


app = Application()
