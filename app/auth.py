"""Who gets in: one API key, as a bearer token or in X-API-Key.

Probes and scrapes need none: a liveness probe that fails because a secret was rotated would restart a healthy server.
Without a configured key everything is open, which only development and staging allow. Keys are compared in constant
time.
"""

import hmac
from typing import Final

import falcon

from app.problem import Problem

OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})
OPEN_PREFIX: Final = "/health/"


class Gate:
    """Falcon middleware that lets requests with the right key through."""

    def __init__(self, api_key: str) -> None:
        self._key = api_key.encode()

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Raise 401 unless the request carries the key or needs none."""
        environ = request.env
        path = environ["PATH_INFO"]
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            token = environ.get("HTTP_X_API_KEY", "")
        if not hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._key):
            # RFC 9110 §11.6.1: a 401 names the scheme that would do.
            raise Problem(
                401, "unauthorised", "This route needs the API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                headers={"WWW-Authenticate": 'Bearer realm="mlsdm"'},
            )  # fmt: skip
