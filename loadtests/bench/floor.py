"""The floor: a Falcon WSGI application in the product's worker class that reads the body and answers a constant.

    gunicorn -k app.httpd.gunicorn_worker.EventedWorker loadtests.bench.floor:app

It has no middleware, gate, store or metrics: a lower limit for any Falcon application on this worker. It has the
product's paths, so that it gets the same bytes.
"""

from typing import Final

import falcon

ANSWER: Final = b'{"accepted":true}'


class Constant:
    """One answer to everything."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Read the body."""
        request.env["wsgi.input"].read()
        response.data = ANSWER
        response.content_type = "application/json"

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Read nothing."""
        response.data = ANSWER
        response.content_type = "application/json"


app: Final = falcon.App()
for path in ("/event", "/events", "/recall", "/state", "/livez"):
    app.add_route(path, Constant())
