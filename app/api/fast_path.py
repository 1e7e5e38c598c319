"""Fast path: serves the hottest routes without the framework.

A resource takes part by its attribute `fast_responders`: functions by method that take the environ and return JSON. Its
ordinary responder calls the same function, so both paths give the same response. The path of the request is looked up
in a dictionary, the gate admits the request, and the function is called.

Invariants: the fast path answers successes only. Whatever is raised is raised again inside Falcon, whose error handlers
answer, count and audit it (`ReraiseMiddleware`), so refusals have one implementation. Falcon also serves everything
else: other methods, HEAD, paths with additional slashes.

Perf: Falcon takes 5 µs to find the route, make request and response and call middleware and responder, which is as
much as the event itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

import falcon

from app.api.access.gate import Gate
from app.api.codec.media_types import JSON
from app.api.operation import Operation, Resource
from app.httpd.request import RAISED

FastResponder = Callable[[WSGIEnvironment], bytes]

_OK: Final = "200 OK"
_HEADERS: Final = [("Content-Type", JSON)]


class FastPath:
    """A WSGI application that serves the fast routes itself and passes everything else to `framework`."""

    def __init__(self, routes: Mapping[str, Resource], gate: Gate, framework: Any) -> None:
        """`routes` by path; those with `fast_responders`, at most one each, are served here."""
        self._admit = gate.admit
        self._framework = framework
        self._fast_routes: dict[str, tuple[str, Operation, FastResponder]] = {
            path: (method, resource.operations[method], responder)
            for path, resource in routes.items()
            for method, responder in getattr(resource, "fast_responders", {}).items()
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        fast_route = self._fast_routes.get(environ["PATH_INFO"])
        if fast_route is not None:
            method, operation, responder = fast_route
            if method == environ["REQUEST_METHOD"] and RAISED not in environ:
                try:
                    self._admit(environ, operation)
                    body = responder(environ)
                except Exception as error:  # noqa: BLE001 - raised again inside the framework
                    environ[RAISED] = error
                else:
                    start_response(_OK, _HEADERS)
                    return [body]
        chunks: Iterable[bytes] = self._framework(environ, start_response)
        return chunks


class ReraiseMiddleware:
    """Falcon middleware, the first one: raises again what the fast path or `wants_body` of app.main has caught."""

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Raise the error of a request, if it has one. Falcon calls this before it looks for a route."""
        error = request.env.pop(RAISED, None)
        if error is not None:
            try:
                raise error
            finally:
                # The error's traceback refers to this frame. A variable for the error would make a reference cycle,
                # which keeps the request and its body (up to 16 MB) in memory until the next garbage collection.
                del error
