"""The server with a route whose answers are deferred.

    gunicorn -c gunicorn.conf.py testing.deferred_app:app

POST /later/{name} waits until `release` is posted to any name, on the same worker. The query says what happens
afterwards: `?raise=problem`, `store`, `bug`, `interrupt` or `other`, `?fill` to fill the response in the coroutine,
`?bytes` to return bytes.
With `?defy` it waits on when it is cancelled. Answers are late after TIMEOUT_SECONDS, 10 unless the environment says
otherwise.
"""

import asyncio
import os
from typing import Annotated, Any, Final

import falcon
import msgspec
from msgspec import Meta

from app import main
from app.api.operation import Operation, Parameter, Resource
from app.api.problem import Problem
from app.routes.table import routes
from core.access.keys import Role
from shm import errors

SECONDS_MAX: Final = float(os.environ.get("TIMEOUT_SECONDS", "10"))
BUGS: Final = {"bug": ValueError, "interrupt": KeyboardInterrupt, "other": BaseException}


class Later(msgspec.Struct):
    """An answer, and what may be sent."""

    name: Annotated[str, Meta(description="The name.", examples=["one"])] = ""
    size: Annotated[int, Meta(description="Bytes of the body.", examples=[2])] = 0


class LaterResource:
    """POST and GET /later/{name}."""

    def __init__(self) -> None:
        name = Parameter("name", "path", Annotated[str, Meta(examples=["one"])], "A name.", required=True)
        flags = [Parameter(flag, "query", str, "What happens.") for flag in ("raise", "fill", "bytes", "early", "defy")]
        operation = Operation(
            "Wait.", Role.WRITE, Later, {"application/json": Later}, (name, *flags), cost=1, deferred=True,
            deferred_seconds_max=SECONDS_MAX,
        )  # fmt: skip
        self.operations = {"POST": operation, "GET": operation}
        self.waiting: list[str] = []
        self.cancelled: list[str] = []
        self._released: asyncio.Event | None = None

    def on_post(self, request: falcon.Request, response: falcon.Response, name: str) -> Any:
        if self._released is None:
            self._released = asyncio.Event()
        if name == "release":
            self._released.set()
            self._released = None
        if "early" in request.params:
            raise Problem(422, "field_invalid", "before anything waits")
        return self._answer(request, response, name, self._released)

    on_get = on_post
    on_head = on_post

    async def _answer(
        self, request: falcon.Request, response: falcon.Response, name: str, released: asyncio.Event | None
    ) -> Any:
        size = len(request.bounded_stream.read())
        if released is not None and name != "state":
            self.waiting.append(name)
            try:
                while not released.is_set():
                    try:
                        await released.wait()
                    except asyncio.CancelledError:
                        self.cancelled.append(name)
                        if "defy" not in request.params:
                            raise
            finally:
                self.waiting.remove(name)
        match request.params:
            case {"raise": "problem"}:
                raise Problem(422, "field_invalid", "from the coroutine", field="name")
            case {"raise": "store"}:
                raise errors.Stopped
            case {"raise": kind}:
                raise BUGS[str(kind)]("a bug in the coroutine")
            case {"bytes": _}:
                return b"bytes"
            case {"fill": _}:
                response.status = 202
                response.set_header("X-Own", name)
                response.text = "filled"
                response.content_type = "text/plain"
                return None
        if name == "state":
            return {"waiting": self.waiting, "cancelled": self.cancelled}
        return Later(name, size)


def with_later(*arguments: Any) -> dict[str, Resource]:
    """Return the table of routes and one more."""
    return {**routes(*arguments), "/later/{name}": LaterResource()}


assert vars(main)["routes"] is routes  # the replaced name is the one that would be used
vars(main)["routes"] = with_later
app: Final = main.app
