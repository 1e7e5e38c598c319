"""Deferred answers: operations whose responder returns an awaitable (`Operation.deferred`).

The responder runs like any other: behind router, gate and quotas. What it returns is awaited in a task on the worker's
loop, and the request goes back into Falcon when the task has its result: an exception meets the same error handlers as
that of any other responder, and a response is rendered in the same way. To the server it is an answer that comes later
(`app.httpd.application`).

Invariants: at most `count_max` requests of a worker wait; one more is refused before its responder is called. Each
waits for at most `Operation.deferred_seconds_max`. The task is cancelled when the client leaves, and when the worker
ends. One that does not end then keeps its place, so that such tasks are bounded; it is counted and logged. What the
request was charged is refunded only when its responder was not called, or refused the request itself: otherwise a
client could get work done free of charge by leaving before the answer.

Threading: the loop's thread only.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any, Final, NamedTuple, TypeAlias
from wsgiref.types import StartResponse, WSGIEnvironment

import falcon
import msgspec

from app.api.codec.media_types import JSON
from app.api.operation import Operation, Resource
from app.api.problem import Problem
from app.httpd.request import CHARGE, RAISED

Framework: TypeAlias = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]
Responder: TypeAlias = Callable[..., Any]

CANCEL_SECONDS_MAX: Final = 0.5  # for an operation to clean up when it is cancelled

log = logging.getLogger("mlsdm.worker")


class _Call(NamedTuple):
    """A deferred call of a responder."""

    awaitable: Awaitable[Any]
    response: falcon.Response
    operation: Operation
    route: str


class _Deferred(Exception):
    """Raised by a responder's wrapper, to leave Falcon before it renders a response."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call


class _Completed(Exception):
    """Raised inside Falcon, to have it render a response that is complete."""

    def __init__(self, response: falcon.Response) -> None:
        super().__init__()
        self.response = response


class DeferredAnswers:
    """A WSGI application in front of Falcon, which may defer its answers. One for each worker."""

    _framework: Framework

    def __init__(self, count_max: int, on_abandoned: Callable[[], object] = lambda: None) -> None:
        """`on_abandoned()` is called for each operation that does not end when it is cancelled."""
        self.waiting_count = 0
        self._count_max = count_max
        self._on_abandoned = on_abandoned

    def in_front_of(self, framework: falcon.App[Any, Any]) -> "DeferredAnswers":
        """Serve what `framework` routes. It raises what it finds as RAISED in the environ (`app.api.fast_path`)."""
        framework.add_error_handler(_Deferred, _leave)
        framework.add_error_handler(_Completed, _copy_response)
        self._framework = framework
        return self

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes] | asyncio.Future[Iterable[bytes]]:
        """Serve one request. A future is the answer of a deferred operation."""
        try:
            return self._framework(environ, start_response)
        except _Deferred as deferred:
            call = deferred.call
        return self._start(call, environ, start_response)

    def wrap(self, resource: Resource) -> Resource:
        """Return what Falcon routes in place of `resource`, so that its deferred responders may return awaitables."""
        if not any(operation.deferred for operation in resource.operations.values()):
            return resource
        return _DeferringResource(resource, self._wrap_responder)

    def _wrap_responder(self, responder: Responder, operation: Operation) -> Responder:
        def defer(request: falcon.Request, response: falcon.Response, **params: Any) -> None:
            if self.waiting_count >= self._count_max:
                raise Problem.of_code("too_many_deferred")
            awaitable = responder(request, response, **params)
            if not isawaitable(awaitable):
                raise TypeError(f"the responder of a deferred operation has returned {type(awaitable)}")
            raise _Deferred(_Call(awaitable, response, operation, request.uri_template or ""))

        return defer

    def _start(
        self, call: _Call, environ: WSGIEnvironment, start_response: StartResponse
    ) -> asyncio.Future[Iterable[bytes]]:
        """Return the task that makes the answer of a deferred call."""
        loop = asyncio.get_running_loop()
        work = loop.create_task(_await(call.awaitable))
        answer = loop.create_task(self._answer(call, work, environ, start_response))
        self.waiting_count += 1
        work.add_done_callback(partial(self._finish, call.awaitable))
        # An answer that is cancelled before its first step has not seen that its work has to end.
        answer.add_done_callback(lambda _answer: work.cancel())
        return answer

    def _finish(self, awaitable: Awaitable[Any], work: asyncio.Task[Any]) -> None:
        """Free the place of a call whose work has ended, in time or not."""
        self.waiting_count -= 1
        if not work.cancelled():
            work.exception()  # of work that was abandoned nobody else asks for it
        # A task that is cancelled before its first step has not awaited anything.
        if iscoroutine(awaitable):
            awaitable.close()
        elif isinstance(awaitable, asyncio.Future):
            awaitable.cancel()

    async def _answer(
        self, call: _Call, work: asyncio.Task[Any], environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        try:
            done, _ = await asyncio.wait({work}, timeout=call.operation.deferred_seconds_max)
            if not done:
                await self._cancel(call, work)
            if not done and (work.cancelled() or not work.done()):
                environ.pop(CHARGE, None)  # the outcome is unknown, so what was charged is kept
                environ[RAISED] = Problem.of_code("deferred_timeout")
            else:
                _fill(call.response, work.result(), call.operation)
                environ[RAISED] = _Completed(call.response)
        except asyncio.CancelledError:
            await self._cancel(call, work)
            raise
        except Exception as error:  # noqa: BLE001 - it is raised again inside Falcon
            environ[RAISED] = error
        return self._framework(environ, start_response)

    async def _cancel(self, call: _Call, work: asyncio.Task[Any]) -> None:
        """Cancel the work of a call, and give it a moment to end."""
        work.cancel()
        await asyncio.wait({work}, timeout=CANCEL_SECONDS_MAX)
        if not work.done():
            self._on_abandoned()
            log.error("a deferred operation does not end when it is cancelled, and keeps its place: %s", call.route)


async def _await(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # it would end the loop, or no answer would be made of it
        raise RuntimeError(f"the responder of a deferred operation has raised {error!r}") from error


class _DeferringResource:
    """A resource whose deferred responders are wrapped."""

    def __init__(self, resource: Resource, wrap: Callable[[Responder, Operation], Responder]) -> None:
        self.operations = resource.operations
        for method in falcon.constants.COMBINED_METHODS:
            name = f"on_{method.lower()}"
            responder = getattr(resource, name, None)
            if responder is not None:
                operation = resource.operations["GET" if method == "HEAD" else method]
                setattr(self, name, wrap(responder, operation) if operation.deferred else responder)


def _fill(response: falcon.Response, result: Any, operation: Operation) -> None:
    """Make the body of `result`: bytes as they are, None when the responder has filled the response, else JSON."""
    if result is None:
        return
    if isinstance(result, bytes):
        response.data = result
        media_type = operation.response if isinstance(operation.response, str) else JSON
    else:
        response.data = msgspec.json.encode(result)
        media_type = JSON
    if response.content_type is None:
        response.content_type = media_type


def _leave(_request: falcon.Request, _response: falcon.Response, deferred: _Deferred, _params: Any) -> None:
    """Falcon error handler: leave Falcon."""
    raise deferred


def _copy_response(_request: falcon.Request, response: falcon.Response, completed: _Completed, _params: Any) -> None:
    """Falcon error handler: give the new response everything that the responder's has."""
    for name in falcon.Response.__slots__:
        setattr(response, name, getattr(completed.response, name))
    # The frames of its traceback refer to the request: see `_refuse` in app/main.py.
    completed.__traceback__ = None
