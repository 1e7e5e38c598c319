"""Operation: one method of one route, with everything that others must know before they call it.

Each resource declares its operations, by method, beside its responders (`operations`). Their readers are the gate (the
role), the quotas (the cost), the worker (whether it may hold the loop) and the generated documents.

Invariants: a resource with a responder that has no operation is not routed. So a new route cannot be open, free of
charge or undocumented by accident.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import falcon

from core.access.keys import Role
from core.limits import BODY_SIZE


class Parameter(NamedTuple):
    """A parameter of an operation."""

    name: str
    place: Literal["query", "path", "header"]
    type: Any  # an annotation that msgspec can describe
    meaning: str  # a sentence for the documents
    required: bool = False


class Octets(NamedTuple):
    """A body of plain bytes that holds 1 to `count_max` vectors of float32."""

    meaning: str  # a sentence for the documents
    extra_size: int = 0  # further bytes for each vector
    count_max: int = 1


class Operation(NamedTuple):
    """One method of a route."""

    summary: str  # a sentence for the documents
    role: Role | None  # the lowest role that may call it; None: open, no credential is read and nothing is charged
    response: Any  # of status 200: a type that msgspec can describe, sent as JSON, or the media type of other content
    body: Mapping[str, Any] = MappingProxyType({})  # by media type: a type that msgspec can describe, or Octets
    parameters: tuple[Parameter, ...] = ()  # the gate refuses a query parameter that is not among them (422)
    refusals: tuple[str, ...] = ()  # problem codes of this operation, without those of the connection and the gate
    other_responses: Mapping[int, Any] = MappingProxyType({})  # by status: those that are not problem documents
    cost: int = 0  # tokens, charged before the responder runs
    body_size_max: int = BODY_SIZE.value  # bytes
    # Of a batch: bytes of one item at most. In place of `cost`, the responder charges one token for each item, as soon
    # as it has counted them. A body whose size alone exceeds the client's burst is refused before it is read.
    item_size_max: int = 0
    probe: bool = False  # answered even above the cap of connections, because the server is judged by it
    compressed: bool = False  # large responses are sent in gzip to clients that accept it
    blocks: bool = False  # runs on the worker's thread pool
    in_pieces: bool = False  # its response is a generator of pieces, each made in its own turn of the loop
    in_turn: bool = False  # takes more than 0.3 ms on the loop: when many arrive, each waits for its turn
    # The responder returns an awaitable, which runs on the worker's loop. Its result is the body: bytes, a value that
    # msgspec can encode, sent as JSON, or None when the coroutine has filled `response`. It may raise Problem and
    # StoreError like any responder. It is cancelled when the client leaves, so work that must not be interrupted
    # belongs in its own task. See `app.api.deferred`.
    deferred: bool = False
    documented: bool = True  # False: a help for browsers, which is no part of the API
    deferred_seconds_max: float = 30.0  # then the awaitable is cancelled and the client gets 503 `deferred_timeout`


class Resource(Protocol):
    """What the router accepts: responders (`on_get`, ...) and their operations."""

    @property
    def operations(self) -> Mapping[str, Operation]:
        """Return the operations by method, without HEAD and OPTIONS."""


def operation_of(resource: Resource, method: str) -> Operation | None:
    """Return the operation of a method (HEAD: that of GET); None for OPTIONS and for methods without a responder."""
    return resource.operations.get("GET" if method == "HEAD" else method)


def allow_header(resource: Resource) -> str:
    """Return the value of the Allow field, the same for OPTIONS and for a 405 (RFC 9110 §10.2.1)."""
    methods = set(resource.operations) | ({"HEAD"} if "GET" in resource.operations else set())
    return ", ".join([*sorted(methods), "OPTIONS"])


def check_operations(path: str, resource: Resource) -> None:
    """Assert that the responders of a resource and its operations have the same methods, and that these make sense."""
    responders = {method for method in falcon.constants.COMBINED_METHODS if hasattr(resource, f"on_{method.lower()}")}
    declared = set(resource.operations) | ({"HEAD"} if "GET" in resource.operations else set())
    assert responders == declared, f"{path}: responders {sorted(responders)}, operations {sorted(declared)}"
    for method, operation in resource.operations.items():
        ways = operation.blocks + operation.in_pieces + operation.in_turn + operation.deferred
        assert ways <= 1, f"{method} {path}: answered on the pool, in pieces, in turn or deferred, not in two ways"
        seconds = operation.deferred_seconds_max
        assert 0 < seconds < math.inf, f"{method} {path}: deferred_seconds_max is {seconds}; expected more than 0"
