"""Operations: what a route declares, and that no responder can be routed without one."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import falcon
import pytest

from app.api.operation import Operation, check_operations, operation_of
from core.access.keys import Role

READ = Operation("Read.", Role.READ, dict[str, Any])


class Declared:
    """A resource that declares all of its responders."""

    operations: ClassVar[Mapping[str, Operation]] = {"GET": READ, "DELETE": Operation("Forget.", Role.WRITE, None)}

    def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Do nothing."""

    on_head = on_get

    def on_delete(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Do nothing."""


class Undeclared(Declared):
    """A resource with one responder more than it declares."""

    def on_put(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Do nothing."""


class Headless(Declared):
    """A resource that has GET and no HEAD."""

    on_head: Any = property()

    def __getattribute__(self, name: str) -> Any:
        if name == "on_head":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Deferred(Declared):
    """A resource with a time limit for its answer."""

    def __init__(self, seconds: float) -> None:
        self.operations = {**Declared.operations, "GET": READ._replace(deferred=True, deferred_seconds_max=seconds)}  # type: ignore[misc] # of one resource


class Unanswered(Declared):
    """A resource that declares an operation without a responder."""

    operations: ClassVar[Mapping[str, Operation]] = {**Declared.operations, "PATCH": READ}


def test_a_resource_declares_an_operation_for_each_responder() -> None:
    """GET stands for HEAD."""

    check_operations("/declared", Declared())


@pytest.mark.parametrize("resource", [Undeclared(), Headless(), Unanswered()])
def test_a_resource_with_an_undeclared_responder_is_not_routed(resource: Any) -> None:
    """Open, free of charge or undocumented by accident: the worker does not start."""
    with pytest.raises(AssertionError, match=r"/route: responders .*, operations "):
        check_operations("/route", resource)


def test_the_operation_of_a_method() -> None:
    """That of HEAD is that of GET; others, OPTIONS among them, have none."""
    resource = Declared()

    methods = ("GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "PURGE", "")
    assert [operation_of(resource, method) for method in methods] == [
        READ, None, None, Declared.operations["DELETE"], READ, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_time_limit_must_end(seconds: float) -> None:
    """Without one a deferred answer would keep its place for as long as its client stays."""
    with pytest.raises(AssertionError, match="GET /route: deferred_seconds_max is"):
        check_operations("/route", Deferred(seconds))
    check_operations("/route", Deferred(0.5))
