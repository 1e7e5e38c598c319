"""Who gets in, and what for: the gate in front of every route.

A token opens a key, a key has a role, an operation names the role it needs (`app.api.operation`). Open operations
(probes and scrapes) read no token: a liveness probe that fails because a secret was rotated would restart a healthy
server. Without any key the service is open, which only development and staging allow, and everybody is an
administrator.

The gate stands behind the router, so what it protects is the route that will run, not what a path looks like. Unknown
paths end in a sink that needs a key, too, so that a stranger learns nothing from them.

It also says who asks, in the environ: `mlsdm.client`, of those who have a key, or need none; and where there are listed
proxies, `mlsdm.address`, for which their forwarding headers are believed, and nobody else's, also of those who are
refused.

Without keys a browser is a door: any page that its user looks at may send requests to 127.0.0.1, and a page whose name
was rebound to that address even passes for one of ours. So an open service refuses what a page of another origin sends,
and one that listens on a loopback address alone also every Host that is neither an address nor `localhost`. With keys
that needs no rule, because no browser adds a key by itself.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

import falcon

from app.api.access.client import Client
from app.api.codec.body_sizes import item_count_min
from app.api.operation import Operation, Resource, allow_header, operation_of
from app.api.problem import Problem
from app.httpd.request import ADDRESS, CLIENT
from core.access.keys import Key, Keyring, Role
from core.settings.proxies import Network

# RFC 6750 §3: a 401 names the scheme that would do, and a token that was shown and is no good is said to be so.
_CHALLENGE: Final = 'Bearer realm="mlsdm"'
_KNOWN_COUNT_MAX: Final = 1_024
_EVERYBODY: Final = Key("", Role.ADMIN, "standard", b"", float("inf"))


class Gate:
    """Falcon middleware that lets requests through whose key may do what they ask for."""

    def __init__(
        self,
        keyring: Keyring,
        proxies: tuple[Network, ...] = (),
        charge: Callable[[WSGIEnvironment, int], None] | None = None,
        loopback: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`charge(environ, tokens)` takes an operation's cost and may raise; `loopback` says that nobody can
        connect from elsewhere; `clock` in Unix seconds.
        """
        self._loopback = loopback
        self._keyring = keyring
        self._is_open = keyring.is_open
        # PERF: who has shown what and was let in, so that each request of a client is not identified anew: the gate
        # takes 0.6 µs instead of 2.0, warm. Only credentials that are good are here, and a dictionary compares hashes,
        # keyed anew in each process, before it compares text: strangers learn nothing from its time.
        self._known: dict[tuple[str | None, str | None], Client] = {}
        self._proxies = proxies
        self._charge = charge
        self._clock = clock
        self._is_proxy = lru_cache(1024)(self._find_proxy)

    def process_resource(
        self, request: falcon.Request, response: falcon.Response, resource: Resource, _params: dict[str, Any]
    ) -> None:
        """Falcon's middleware: raise unless the request may go on, and take what it costs."""
        operation = operation_of(resource, request.method)
        if operation is None:  # OPTIONS, or a method that the route does not have: nothing that a reader may not know
            self._admit(request.env, Role.READ)
            if request.method == "OPTIONS":  # RFC 9110 §9.3.7: what may be asked of the route; there is nothing to say
                response.status = falcon.HTTP_204
                response.set_header("Allow", allow_header(resource))
                response.complete = True
            elif request.method not in falcon.constants.COMBINED_METHODS:  # RFC 9110 §9.1: no resource here knows it
                raise Problem(501, "method_not_implemented", f"No route here has the method {request.method}.")
        else:
            self.admit(request.env, operation)

    def no_route(self, request: falcon.Request, response: falcon.Response, **_params: str) -> None:
        """Answer a path that no route has: the sink behind all routes."""
        self._admit(request.env, Role.READ)
        if request.method == "OPTIONS" and request.env["PATH_INFO"] == "*":  # RFC 9110 §9.3.7: of the whole service
            response.status = falcon.HTTP_204
            return
        raise falcon.HTTPRouteNotFound

    def admit(self, environ: WSGIEnvironment, operation: Operation) -> None:
        """Put address and client of a request into its environ, and take what the operation costs. Raises 401, 403 or
        429.
        """
        if operation.role is not None:
            self._admit(environ, operation.role)
            if self._charge is not None:
                if operation.cost:
                    self._charge(environ, operation.cost)
                elif operation.item_size_max:
                    self._charge(environ, item_count_min(int(environ.get("CONTENT_LENGTH") or 0), operation))

    def wants_body(self, environ: WSGIEnvironment, operation: Operation | None) -> bool:
        """Return whether a client may send a body that is large or held back (RFC 9110 §10.1.1): only who may call the
        operation. An open one reads nothing, so it is answered without.
        """
        if operation is None or operation.role is None:
            return False
        try:
            self._admit(environ, operation.role)
        except Problem:
            return False
        return True

    def _admit(self, environ: WSGIEnvironment, role: Role) -> None:
        """Put address and client into `environ`. Raises 401 without a key that holds, 403 with too low a role."""
        address = environ["REMOTE_ADDR"]
        if self._proxies:
            address = environ[ADDRESS] = self.address_of(environ)
        if self._is_open:
            if self._loopback:
                _refuse_names(environ.get("HTTP_HOST", ""))
            _refuse_other_origins(environ)
            environ[CLIENT] = Client(address, _EVERYBODY)
            return
        shown = environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY")
        client = self._known.get(shown)
        if client is None or client.key.expires <= self._clock():
            client = self._identify(token_of(environ))
            if len(self._known) == _KNOWN_COUNT_MAX:
                self._known.clear()
            self._known[shown] = client
        environ[CLIENT] = client
        key = client.key
        if key.role < role:
            needed = role.name.lower()
            detail = f"This route needs the role {needed}; key {key.id} has the role {key.role.name.lower()}."
            challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{needed}"'  # RFC 6750 §3.1
            raise Problem(403, "forbidden", detail, headers={"WWW-Authenticate": challenge})

    def _identify(self, token: str) -> Client:
        """Return whom a token belongs to. Raises 401 when to nobody."""
        key = self._keyring.identify(token, self._clock())
        if key is None:
            shown = "" if not token else ', error="invalid_token"'
            raise Problem(
                401, "unauthorised", "This route needs an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                headers={"WWW-Authenticate": _CHALLENGE + shown},
            )  # fmt: skip
        return Client(key.id, key)

    def address_of(self, environ: WSGIEnvironment) -> str:
        """Return the address of whoever asks: the peer, or what a listed proxy says of those behind it.

        X-Forwarded-For grows to the right, one hop each, so it is read from there: the first address that is not a
        listed proxy is the last one that somebody trustworthy has seen. What stands further left anybody may have
        written.
        """
        address: str = environ["REMOTE_ADDR"]
        if "HTTP_X_FORWARDED_FOR" not in environ:
            return address
        hops = environ["HTTP_X_FORWARDED_FOR"].split(",")
        while hops and self._is_proxy(address):
            hop = _address(hops.pop())
            if hop is None:
                break
            address = hop
        return address

    def _find_proxy(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:  # a peer on a Unix socket has none
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._proxies)


def token_of(environ: WSGIEnvironment) -> str:
    """Return the token that a request shows, "" when it shows none."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":  # RFC 9110 §11.1: schemes are matched whatever their case
        return str(token.strip())
    return str(environ.get("HTTP_X_API_KEY", "").strip())


def _refuse_other_origins(environ: WSGIEnvironment) -> None:
    """Raise 403 when a browser says that another site's page sends this (RFC 6454 §7; browsers leave Origin out only of
    requests that change nothing).
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin.partition("://")[2].lower() != environ.get("HTTP_HOST", "").lower():
        detail = "A page of another origin sent this, and this service has no keys to tell who may."
        raise Problem(403, "other_origin", detail, field="Origin", expected="no Origin, or that of this service")


@lru_cache(256)
def _refuse_names(host: str) -> None:
    """Raise 421 for a Host that is a name, unless it is `localhost`: it may have been rebound to this machine."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name and name.lower() != "localhost" and not is_address(name):
        detail = f"{name[:40]} is not this service, which has no keys and listens on this machine alone."
        expected = "localhost or an address"
        raise Problem(421, "misdirected", f"Host: {detail} expected {expected}", field="Host", expected=expected)


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a service that listens on `host` can be reached from its own machine alone."""
    return host.lower() == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def _address(hop: str) -> str | None:
    """Return the address in one member of X-Forwarded-For; None when there is none. Some proxies add a port.

    A scope (`fe80::1%eth0`) is none: it means something to one host only, and may be any text of any length.
    """
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return None if "%" in hop else str(ip_address(hop))
    except ValueError:
        return None
