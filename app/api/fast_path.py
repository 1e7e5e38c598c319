"""The lane: the short way of the routes that are asked for most.

Falcon finds the route, makes a request and a response, and calls middleware and responder: 5 µs, as much as the event
itself. A route of the lane is found in a dictionary, the gate is asked, and its `answers` member of that method is
called with the environ and returns JSON: the very function that the responder of its resource calls, too.

The lane knows success only. Whatever is raised goes the long way: it is raised again inside Falcon, whose error
handlers answer, count and audit it like any other (`ReraiseMiddleware`). So there is one place that knows what a
refusal looks like, and everything else about a request (other methods, HEAD, paths with slashes too many) is Falcon's
as well.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

import falcon

from app.api.access.gate import Gate
from app.api.codec.media_types import JSON
from app.api.operation import Operation, Resource
from app.httpd.request import RAISED

Answer = Callable[[WSGIEnvironment], bytes]

_OK: Final = "200 OK"
_HEADERS: Final = [("Content-Type", JSON)]


class FastPath:
    """A WSGI application in front of another, `framework`, which gets everything that is not on the lane."""

    def __init__(self, routes: Mapping[str, Resource], gate: Gate, framework: Any) -> None:
        """Resources with `answers` (the answer to a method) take the lane; one method each."""
        self._admit = gate.admit
        self._framework = framework
        self._short: dict[str, tuple[str, Operation, Answer]] = {
            path: (method, resource.operations[method], answer)
            for path, resource in routes.items()
            for method, answer in getattr(resource, "fast_responders", {}).items()
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        short = self._short.get(environ["PATH_INFO"])
        if short is not None:
            method, operation, answer = short
            if method == environ["REQUEST_METHOD"] and RAISED not in environ:
                try:
                    self._admit(environ, operation)
                    body = answer(environ)
                except Exception as error:  # noqa: BLE001 - it is raised again, below
                    environ[RAISED] = error
                else:
                    start_response(_OK, _HEADERS)
                    return [body]
        answered: Iterable[bytes] = self._framework(environ, start_response)
        return answered


class ReraiseMiddleware:
    """Falcon middleware, the first: raises again what was raised on the lane."""

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Called before Falcon looks for a route."""
        error = request.env.pop(RAISED, None)
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback leads to this frame: a name for it here would be a circle, which keeps the request with
                # its body, up to 16 MB, until the collector comes by.
                del error
