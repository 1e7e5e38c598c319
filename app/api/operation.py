"""The operation: one method of one route, with everything that others need to know of it before they call it.

Each resource declares its operations beside its responders (`operations`, by method). Four readers use them and nothing
else: the gate (which role may call it), the quotas (what it costs), the worker (whether it may block the loop), and the
documentation, which is generated from them. So a new route cannot be open, free of charge or undocumented by accident:
a resource without an operation for a responder does not get routed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import falcon

from core.access.keys import Role
from core.limits import BODY_SIZE


class Parameter(NamedTuple):
    """A parameter of an operation. `type` is an annotation that msgspec can describe."""

    name: str
    place: Literal["query", "path", "header"]
    type: Any
    meaning: str
    required: bool = False


class Octets(NamedTuple):
    """A body of plain bytes: 1 to `count_max` vectors of float32, with `beside` bytes for each of them."""

    meaning: str
    beside: int = 0
    count_max: int = 1


class Operation(NamedTuple):
    """One method of a route.

    `role` is the lowest that may call it; None opens it to everybody, keys unread and limits off. `answer` is a type
    that msgspec can describe, sent as JSON, or a media type; `others` are answers with other statuses than 200 that are
    no problem documents. `body` says by media type what may be sent: a type that msgspec can describe, or Octets.
    `refusals` are the codes (`app.api.problem_codes`) that are its own; what the connection and the gate may say to any
    request is not repeated. `cost` in tokens is taken before the responder runs. The body has at most `body_size_max`
    bytes; if it is a batch, with at most `item_size_max` bytes for each of its items, a token for each item that it
    must have is taken instead, and the rest by the responder, which can count them. `blocks` sends it to the worker's
    thread pool;
    `in_pieces` says that its answer is long and a stream of pieces.
    """

    summary: str
    role: Role | None
    response: Any
    body: Mapping[str, Any] = MappingProxyType({})
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[str, ...] = ()
    other_responses: Mapping[int, Any] = MappingProxyType({})
    cost: int = 0
    body_size_max: int = BODY_SIZE.value
    item_size_max: int = 0
    blocks: bool = False
    in_pieces: bool = False


class Resource(Protocol):
    """What the router takes."""

    @property
    def operations(self) -> Mapping[str, Operation]:
        """Return the operations by method; HEAD is that of GET."""


def operation_of(resource: Resource, method: str) -> Operation | None:
    """Return the operation of a method; None for one that the resource does not have, OPTIONS among them."""
    return resource.operations.get("GET" if method == "HEAD" else method)


def allow_header(resource: Resource) -> str:
    """Return the methods of a resource as the field Allow lists them, to OPTIONS as with a 405 (RFC 9110 §10.2.1)."""
    methods = set(resource.operations) | ({"HEAD"} if "GET" in resource.operations else set())
    return ", ".join([*sorted(methods), "OPTIONS"])


def check_operations(path: str, resource: Resource) -> None:
    """Assert that the resource's responders and its operations are the same."""
    responders = {method for method in falcon.constants.COMBINED_METHODS if hasattr(resource, f"on_{method.lower()}")}
    declared = set(resource.operations) | ({"HEAD"} if "GET" in resource.operations else set())
    assert responders == declared, f"{path}: responders {sorted(responders)}, operations {sorted(declared)}"
