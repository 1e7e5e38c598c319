"""The modules of one process: started together, watched on every beat, closed in reverse.

Owns: the threads of the modules, and what they have published, routes and authenticators, until `add_published` adds
it to the application.
Invariants: a route of a module answers 503 `module_unavailable` unless the module is usable (ready or degraded).
Threading: every method but `_publish` is called on the event loop's thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

import falcon
from falcon.routing import DefaultRouter

from app.api.operation import Resource, check_operations
from app.api.problem import Problem
from app.api.route_path import route_path
from app.lifecycle.contract import Module, ModuleContext
from app.lifecycle.module_thread import ModuleThread, Published
from app.lifecycle.report import Board

UNAVAILABLE: Final = "module_unavailable"
OPEN_SECONDS_MAX: Final = 1.0  # that a worker waits for its modules before it accepts connections
CLOSE_SECONDS_MAX: Final = 5.0  # for all modules of a process together
CLOSE_PART: Final = 0.8  # of the time that the process has left; the rest is for its own exit

log = logging.getLogger("mlsdm.modules")


class Registry:
    """The modules of this process."""

    def __init__(
        self,
        modules: Sequence[Module],
        board: Board,
        holder: int,
        *,
        context_of: Callable[[Module], ModuleContext],
        migrations: Mapping[str, Board],
        routes: Mapping[str, Resource],
        wrap: Callable[[Resource], Resource] = lambda resource: resource,
        wake: Callable[[], object],
    ) -> None:
        """`modules` in the order in which they are opened; `holder` is this process's column of the board; `migrations`
        are the boards of modules that have some; `routes` exist already; `wrap` is what the application does to a
        resource before it adds it; `wake()`, called from any thread, has the event loop call `add_published`.
        """
        self._published: SimpleQueue[Published] = SimpleQueue()
        self._wake = wake
        self._wrap = wrap
        # A router that is only added to, so that a route that cannot be added fails here and not in the application. It
        # never looks up a route: that would compile the router, and copy many pages that the processes share.
        self._trial = DefaultRouter()
        self._templates = {route_path(path) for path in routes}
        self._trying = threading.Lock()
        for path, resource in routes.items():
            self._trial.add_route(path, wrap(resource))
        self._threads = {
            module.name: ModuleThread(
                module,
                board,
                holder,
                migrations=migrations.get(module.name),
                context_of=context_of,
                is_usable=self.is_usable,
                publish=self._publish,
            )
            for module in modules
        }
        self._module_of: dict[str, ModuleThread] = {}  # by the template of a route

    def start(self) -> None:
        """Start to open the modules, and wait for those that are quick: OPEN_SECONDS_MAX for all together."""
        deadline = time.monotonic() + OPEN_SECONDS_MAX
        for thread in self._threads.values():
            thread.start()
        for thread in self._threads.values():
            thread.settled.wait(max(0.0, deadline - time.monotonic()))

    def add_published(self, add: Callable[[Published], None]) -> None:
        """Hand to `add` what modules have published since the last call."""
        while True:
            try:
                published = self._published.get_nowait()
            except Empty:
                return
            thread = self._threads[published.module]
            self._module_of |= dict.fromkeys(published.routes, thread)
            try:
                add(published)
            except Exception as error:
                log.exception("what module %s has published cannot be added", published.module)
                thread.fail(f"its routes or authenticators cannot be added: {error}")

    def report_stuck(self, now: float) -> None:
        """Find modules that are stuck; called on every beat. `now` on the monotonic clock."""
        for thread in self._threads.values():
            thread.report_if_stuck(now)

    def is_usable(self, name: str) -> bool:
        """Return whether a module of this process is ready or degraded."""
        thread = self._threads.get(name)
        return thread is not None and thread.is_usable

    @property
    def close_seconds(self) -> float:
        """How long a process should leave for `close` before it has to end; 0 when no module has one."""
        has_close = any(thread.has_close for thread in self._threads.values())
        return CLOSE_SECONDS_MAX / CLOSE_PART if has_close else 0.0

    def close(self, seconds_left: float = CLOSE_SECONDS_MAX / CLOSE_PART) -> None:
        """Close the modules in reverse, and leave behind those that take longer than their part of the time.

        `seconds_left` is the time until this process has to end. Each module may take an equal part of what is left for
        it and the modules after it. So a module that hangs takes no time from the others, and a quick one leaves them
        its rest.
        """
        deadline = time.monotonic() + min(CLOSE_SECONDS_MAX, CLOSE_PART * seconds_left)
        threads = [*reversed(self._threads.values())]
        for number, thread in enumerate(threads):
            sharing = sum(other.may_take_time for other in threads[number:])
            thread.request_close()
            thread.join(max(0.0, deadline - time.monotonic()) / max(1, sharing))
            if thread.is_alive():
                log.error("module %s is left behind in its %s", thread.module.name, thread.cell.running or "thread")
            thread.leave_behind()

    def process_resource(
        self, request: falcon.Request, _response: falcon.Response, _resource: Resource, _params: dict[str, Any]
    ) -> None:
        """Falcon's middleware, behind the gate: refuse a route whose module is not usable."""
        thread = self._module_of.get(request.uri_template or "")
        if thread is not None and not thread.is_usable:
            cell = thread.cell
            detail = f"The module {thread.module.name}, which has this route, is {cell.state}; GET /modules says more."
            raise Problem(503, UNAVAILABLE, detail, retry_after=1)

    def _publish(self, published: Published) -> None:
        """Check and queue what a module adds; on the module's thread, so that a mistake in it fails that module."""
        for path, resource in published.routes.items():
            check_operations(path, resource)
            for method, operation in resource.operations.items():
                assert UNAVAILABLE in operation.refusals, f"{method} {path} does not declare {UNAVAILABLE}"
            if not path.startswith("/"):
                raise ValueError(f"the route {path!r} does not begin with a slash")
            with self._trying:
                if route_path(path) in self._templates:
                    raise ValueError(f"{path} is a route already")
                self._trial.add_route(path, self._wrap(resource))
                self._templates.add(route_path(path))
        self._published.put(published)
        self._wake()
