"""The ASGI floor: Falcon ASGI on uvicorn-worker, which reads the body and answers the same constant as our floor.

.venv/bin/gunicorn -k uvicorn_worker.UvicornWorker program:app
"""

from typing import Final

import falcon.asgi

ANSWER: Final = b'{"accepted":true}'


class Constant:
    """One answer to everything."""

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        """Read the body."""
        await request.stream.read()
        response.data = ANSWER
        response.content_type = "application/json"


app: Final = falcon.asgi.App()
app.add_route("/event", Constant())
