"""Gate: identifies the client of every request and checks that its role suffices, in front of every route.

Owns: the chain of authenticators, the cache of clients that they identified, the environ members CLIENT and ADDRESS
(ADDRESS only where proxies are trusted; refused requests get it too).

Invariants: the gate stands behind the router, so it protects the route that will run, however its path is written.
Paths without a route need a credential too: no stranger finds out which exist. Open operations (probes, scrapes) read
no credential and no query: neither a rotated secret nor a parameter that a balancer adds may restart a healthy server.
Every other operation refuses what it would ignore: undeclared parameters, a body that it does not take, and a second
credential. Without authenticators (development and staging) the server is open, and every client is an administrator.

A page of another origin, open in a browser on the same machine, must not reach an open server. So it refuses a foreign
Origin that is not among `origins` and, on a loopback address, any Host that is a name other than `localhost` (DNS
rebinding). With authenticators neither rule is needed, because no browser adds a key by itself.
"""

import time
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final, Protocol
from wsgiref.types import WSGIEnvironment

import falcon

from app.api.access.client import Client
from app.api.access.quotas import Quotas
from app.api.codec.body_sizes import item_count_min
from app.api.codec.query_string import check_query
from app.api.operation import Operation, Resource, allow_header, operation_of
from app.api.problem import Problem, invalid
from app.api.problem_codes import CODES
from app.httpd.request import ADDRESS, CLIENT
from core.access.keys import Keyring, Role
from core.settings.proxies import UNIX, Proxy
from core.settings.tiers import STANDARD

# RFC 6750 §3: a 401 names the accepted scheme, and says when a token was sent and is not valid.
_CHALLENGE: Final = 'Bearer realm="mlsdm"'
_MISSING_KEY: Final = "This route needs an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`."
_INVALID_KEY: Final = (
    "The API key is unknown or has expired. This route needs a valid one: `Authorization: Bearer KEY` or "
    "`X-API-Key: KEY`, with the whole token and nothing else."
)
_MAPPED: Final = "::ffff:"
_CACHED_COUNT_MAX: Final = 1_024
_NO_CREDENTIALS: Final = (None, None)
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})  # RFC 9110 §9.3.1: content has no meaning there, and is ignored


class Authenticator(Protocol):
    """Recognises one kind of credential. Called on the loop's thread and on threads of the pool; must not wait."""

    def identify(self, environ: WSGIEnvironment) -> Client | None:
        """Return the client of a request, or None when the request has no credential of this kind.

        Raises Problem (`unauthorised`) for a credential that is of this kind and not valid.
        """


class KeyAuthenticator:
    """Recognises the keys of a keyring. `clock` returns Unix seconds."""

    def __init__(self, keyring: Keyring, clock: Callable[[], float] = time.time) -> None:
        self._keyring = keyring
        self._clock = clock

    def identify(self, environ: WSGIEnvironment) -> Client | None:
        """Return the client of the key in a request; None for an unknown or expired key, or without a key."""
        key = self._keyring.identify(token_of(environ), self._clock())
        return None if key is None else Client.of_key(key)


class NoAuthenticator:
    """Recognises nobody. Keeps a server without keys closed while a module may still add its authenticators."""

    def identify(self, _environ: WSGIEnvironment) -> None:
        """Return None for every request."""
        return


class Gate:
    """Falcon middleware that lets a request through when its client may call the operation."""

    def __init__(
        self,
        authenticators: Iterable[Authenticator],
        proxies: tuple[Proxy, ...] = (),
        quotas: Quotas | None = None,
        *,
        loopback: bool = False,
        origins: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`authenticators` are asked in order; without any the server is open.

        `quotas` charge for operations, None without rate limits; `loopback` states that the server can be reached from
        its own machine only; `origins` are those of pages that may ask an open server; `clock` returns Unix seconds.
        """
        self._authenticators = tuple(authenticators)
        # PERF: clients by their credentials, so that not every request is authenticated again: 0.25 µs instead of 1.5,
        # warm (AMD EPYC, Python 3.11). Only valid credentials are stored. A dictionary compares hashes, which are keyed
        # anew in each process, before it compares text, so its timing reveals nothing.
        self._cached: dict[tuple[str | None, str | None], Client] = {}
        self._loopback = loopback
        self._origins = frozenset(origins)
        self._proxies = proxies
        self._quotas = quotas
        self._clock = clock
        self._is_proxy = lru_cache(1024)(self._find_proxy)

    def add(self, authenticator: Authenticator) -> None:
        """Append an authenticator, which is asked after those before it. For the loop's thread.

        The first authenticator closes an open server, so it must be added before the first request.
        """
        self._authenticators = (*self._authenticators, authenticator)

    def process_resource(
        self, request: falcon.Request, response: falcon.Response, resource: Resource, _params: dict[str, Any]
    ) -> None:
        """Falcon middleware: raise unless the client may call the operation, and charge for it."""
        operation = operation_of(resource, request.method)
        if (
            operation is None
        ):  # OPTIONS, or a method that the route does not have: the role `read` may learn the methods
            self.check(request.env, Role.READ)
            if request.method == "OPTIONS":  # RFC 9110 §9.3.7: the methods of the route; there is no content
                response.status = falcon.HTTP_204
                response.set_header("Allow", allow_header(resource))
                response.complete = True
            elif request.method not in falcon.constants.COMBINED_METHODS:  # RFC 9110 §9.1: known to no resource
                raise Problem(501, "method_not_implemented", f"No route here has the method {request.method}.")
        else:
            self.admit(request.env, operation)
            if not operation.body and operation.role is not None and request.method not in _WITHOUT_BODY:
                _refuse_body(request.env["wsgi.input"].read())

    def no_route(self, request: falcon.Request, response: falcon.Response, **_params: str) -> None:
        """Refuse a path without a route: the sink behind all routes."""
        self.check(request.env, Role.READ)
        if request.method == "OPTIONS" and request.env["PATH_INFO"] == "*":  # RFC 9110 §9.3.7: the server as a whole
            response.status = falcon.HTTP_204
            return
        raise falcon.HTTPRouteNotFound

    def admit(self, environ: WSGIEnvironment, operation: Operation) -> None:
        """Put address and client of a request into its environ, check its query, and charge for the operation.

        Raises Problem with 401, 403, 421, 422 or 429.
        """
        if operation.role is not None:
            self.check(environ, operation.role)
            if environ["QUERY_STRING"]:
                check_query(environ["QUERY_STRING"], operation)
            if self._quotas is not None:
                if operation.cost:
                    self._quotas.charge(environ, operation.cost)
                elif operation.item_size_max:  # the responder charges for the items when it has counted them
                    tokens_min = item_count_min(int(environ.get("CONTENT_LENGTH") or 0), operation)
                    self._quotas.check_burst(environ, tokens_min)

    def check(self, environ: WSGIEnvironment, role: Role) -> None:
        """Put address and client into `environ`. Raises 401 without a valid credential, 403 below `role`."""
        address = environ["REMOTE_ADDR"]
        if self._proxies:
            address = environ[ADDRESS] = self.address_of(environ)
        if not self._authenticators:
            if self._loopback:
                _refuse_names(environ.get("HTTP_HOST", ""))
            if "HTTP_ORIGIN" in environ:
                _refuse_other_origins(environ, self._origins)
            environ[CLIENT] = Client(address, Role.ADMIN, STANDARD, is_address=True)
            return
        credentials = environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY")
        client = self._cached.get(credentials)
        if client is None or client.cached_until <= self._clock():
            client = self._authenticate(environ, credentials)
        environ[CLIENT] = client
        if client.role < role:
            needed = role.name.lower()
            detail = f"This route needs the role {needed}; client {client.id} has the role {client.role.name.lower()}."
            challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{needed}"'  # RFC 6750 §3.1
            raise Problem(403, "forbidden", detail, headers={"WWW-Authenticate": challenge})

    def _authenticate(self, environ: WSGIEnvironment, credentials: tuple[str | None, str | None]) -> Client:
        """Ask the authenticators in order, and cache the client as long as it allows. Raises 401, and 400 if there are
        two credentials.
        """
        if None not in credentials:
            _refuse_conflict(environ)
        for authenticator in self._authenticators:
            client = authenticator.identify(environ)
            if client is not None:
                if client.cached_until > self._clock() and credentials != _NO_CREDENTIALS:
                    if len(self._cached) >= _CACHED_COUNT_MAX:
                        self._cached.clear()
                    self._cached[credentials] = client
                return client
        raise unauthorised(has_token=bool(token_of(environ)))

    def address_of(self, environ: WSGIEnvironment) -> str:
        """Return the address of the client: the peer, or the address that a trusted proxy reports.

        Each hop appends to X-Forwarded-For on the right, so it is read from the right: the first address that is not a
        trusted proxy was seen by a trusted one. Anybody may have written what stands left of it.
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
        if address == UNIX:
            return UNIX in self._proxies
        parsed = ip_address(address)
        return any(parsed in network for network in self._proxies if network != UNIX)


def unauthorised(*, has_token: bool) -> Problem:
    """Return the 401 for a request without a valid credential; `has_token` states that it had an invalid one (RFC 6750
    §3.1). Unknown and expired keys get the same answer, so nobody learns that a key was valid once.
    """
    return Problem(
        401, "unauthorised", _INVALID_KEY if has_token else _MISSING_KEY,
        headers={"WWW-Authenticate": _CHALLENGE + (', error="invalid_token"' if has_token else "")},
    )  # fmt: skip


def token_of(environ: WSGIEnvironment) -> str:
    """Return the token of Authorization: Bearer, or of X-API-Key; "" when a request has none."""
    bearer = _bearer_token(environ)
    return str(environ.get("HTTP_X_API_KEY", "").strip()) if bearer is None else bearer


def _bearer_token(environ: WSGIEnvironment) -> str | None:
    """Return the token of Authorization: Bearer, which may be empty; None without it, or with another scheme."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return str(token.strip()) if scheme.lower() == "bearer" else None  # RFC 9110 §11.1: schemes in any case


def _refuse_conflict(environ: WSGIEnvironment) -> None:
    """Raise the 400 for two different credentials: whichever was meant, the other one would be ignored.

    Another scheme in Authorization is that of a proxy, and no credential of this server.
    """
    bearer, key = _bearer_token(environ), environ.get("HTTP_X_API_KEY", "").strip()
    if bearer and key and bearer != key:
        raise Problem(
            400, "credentials_conflict", CODES["credentials_conflict"].sentence,
            field="X-API-Key", expected="one of the two fields, or the same key in both",
        )  # fmt: skip


def _refuse_body(body: bytes) -> None:
    """Raise 422 for a body that an operation without members would ignore, such as `{"dry_run": true}`.

    Nothing and an empty object say nothing that could be ignored; some clients always send the latter.
    """
    if body.strip() not in (b"", b"{}"):
        raise invalid("body", "field_unknown", f"has {len(body)} bytes", "no body, or an empty object")


def _refuse_other_origins(environ: WSGIEnvironment, allowed: Collection[str]) -> None:
    """Raise 403 when a page of another site sent the request (RFC 6454 §7), unless its origin is `allowed`.

    A browser omits Origin only from requests that change nothing.
    """
    origin = environ["HTTP_ORIGIN"]
    if origin not in allowed and origin.partition("://")[2].lower() != environ.get("HTTP_HOST", "").lower():
        raise Problem(
            403, "other_origin", CODES["other_origin"].sentence,
            field="Origin", expected="no Origin, or that of this server",
        )  # fmt: skip


@lru_cache(256)
def _refuse_names(host: str) -> None:
    """Raise 421 for a Host that is a name other than `localhost`: DNS may have been rebound to this machine."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name and name.lower() != "localhost" and not is_address(name):
        detail = f"is {name[:40]!r}, and this server has no keys and listens on this machine alone"
        expected = "localhost or an address"
        raise Problem(421, "misdirected", f"Host: {detail}; expected {expected}", field="Host", expected=expected)


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def plain_address(address: str) -> str:
    """Return an IPv4 address that a socket for both families shows as `::ffff:192.0.2.1` (RFC 4291 §2.5.5.2) as IPv4;
    any other text as it is.
    """
    return address[len(_MAPPED) :] if address.startswith(_MAPPED) and "." in address else address


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached from its own machine only."""
    host = plain_address(host.lower())
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def _address(hop: str) -> str | None:
    """Return the address in one member of X-Forwarded-For, without the port that some proxies add; None for no address.

    An address with a scope (`fe80::1%eth0`) counts as none: a scope has a meaning on one host only, and may be any text
    of any length.
    """
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        parsed = ip_address(hop)
    except ValueError:
        return None
    return None if "%" in hop else str(getattr(parsed, "ipv4_mapped", None) or parsed)
