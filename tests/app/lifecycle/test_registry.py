"""The modules of one process: whatever a module does, the process goes on, and the report says what it did."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import falcon
import msgspec
import pytest
from falcon.routing import DefaultRouter

from app.api.operation import Operation, Resource
from app.api.problem import Problem
from app.lifecycle import module_thread, registry
from app.lifecycle.context import make_context
from app.lifecycle.contract import Migration, Module, ModuleContext
from app.lifecycle.module_thread import DEATHS_MAX, STUCK_SECONDS, Published
from app.lifecycle.registry import UNAVAILABLE, Registry
from app.lifecycle.report import Board, Cell
from core.access.keys import Role
from core.settings.config import Config
from shm.process import Identity
from testing.eventually import eventually

DEAD = Identity(os.getpid(), 1)  # this pid, of a process that began at another time


class Nothing:
    """A resource."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation("Nothing.", Role.READ, None, refusals=(UNAVAILABLE,))
    }

    def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Do nothing."""

    on_head = on_get


class Undeclared(Nothing):
    """A resource whose operation does not declare that its module may be unavailable."""

    operations: ClassVar[Mapping[str, Operation]] = {"GET": Operation("Nothing.", Role.READ, None)}


class Waiting(Nothing):
    """A resource whose responder is a coroutine, although its operation is not deferred."""

    async def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:  # type: ignore[override]
        """Do nothing."""

    on_head = Nothing.on_get


class Scripted(Module):
    """A module that does in each method what the test has put into `script`."""

    settings: ClassVar[type[msgspec.Struct]] = Module.settings

    def __init__(self, name: str, *requires: str, **script: Callable[[], Any]) -> None:
        self.name = name  # type: ignore[misc] # one for each object here
        self.requires = requires  # type: ignore[misc]
        self.calls: list[str] = []
        self.has_migration = False
        self._script = script

    def _do(self, method: str, otherwise: Any = None) -> Any:
        self.calls.append(method)
        return self._script[method]() if method in self._script else otherwise

    def migrations(self) -> list[Migration]:
        """Return one, if the test says so."""
        return [Migration("0001", print)] if self.has_migration else []

    def routes(self, _context: ModuleContext) -> Mapping[str, Resource]:
        """Return one route, called like the module."""
        routes: Mapping[str, Resource] = self._do("routes", {f"/{self.name}": Nothing()})
        return routes

    def open(self, _context: ModuleContext) -> None:
        """Do as told."""
        self._do("open")

    def check(self) -> str | None:
        """Return what the script says."""
        wrong: str | None = self._do("check")
        return wrong

    def close(self) -> None:
        """Do as told."""
        self._do("close")


class Process:
    """A process with modules, as a worker is one."""

    def __init__(self, *modules: Module, board: Board | None = None, holder: int = 0) -> None:
        self.board = board or Board([module.name for module in modules], 2)
        self.routes: dict[str, Resource] = {}
        self.migrations = {module.name: Board([module.name], 1) for module in modules if module.migrations()}
        self.registry = Registry(
            modules, self.board, holder,
            context_of=lambda module: make_context(module, "worker", msgspec.UNSET, Config()),  # type: ignore[arg-type]
            migrations=self.migrations, routes={"/event": Nothing()}, wake=lambda: None,
        )  # fmt: skip
        self.registry.start()
        self.apply()

    def apply(self) -> None:
        """Add what modules have published."""
        self.registry.add_published(lambda published: self.routes.update(published.routes))

    def cell(self, name: str) -> Cell:
        """Return what is on the board."""
        cell = self.board.read(name, 0)
        assert cell is not None
        return cell

    def refusal(self, path: str) -> Problem | None:
        """Return what a request for a route is refused with."""
        try:
            request: Any = SimpleNamespace(uri_template=path)
            self.registry.process_resource(request, request, self.routes[path], {})
        except Problem as problem:
            return problem
        return None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks every few milliseconds, no wait for modules that hang, and little for those that do not close."""
    monkeypatch.setattr(module_thread, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(registry, "OPEN_SECONDS_MAX", 0.3)
    monkeypatch.setattr(registry, "CLOSE_SECONDS_MAX", 0.3)
    monkeypatch.setattr(module_thread, "RETRY_SECONDS_MIN", 0.3)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a module hangs on; open at the end of the test, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


def has_reason(process: Process, reason: str | None) -> bool:
    """Return whether that is what the report says of module a."""
    return process.cell("a").reason == reason


def failing() -> None:
    """Fail."""
    raise RuntimeError("told to")


def test_a_module_is_opened_checked_and_closed() -> None:
    """Its route is served in between."""
    module = Scripted("a")
    process = Process(module)
    eventually(lambda: "check" in module.calls)
    refusal = process.refusal("/a")
    process.registry.close()

    assert refusal is None
    assert module.calls[:3] == ["routes", "open", "check"]
    assert module.calls[-1] == "close"
    assert (process.cell("a").state, set(process.cell("a").phases)) == (
        "closed",
        {"routes", "open", "authenticators", "check", "close"},
    )


@pytest.mark.parametrize("method", ["routes", "open"])
def test_a_module_that_raises_fails_and_the_others_are_opened(method: str) -> None:
    """The report names method and error; `close` is not called for what was never open."""
    bad, good = Scripted("bad", **{method: failing}), Scripted("good")
    process = Process(bad, good)
    process.registry.close()

    assert (process.cell("bad").state, process.cell("bad").reason) == ("failed", f"{method}: RuntimeError: told to")
    assert "open" in good.calls
    assert "close" not in bad.calls


def test_a_route_of_a_module_that_failed_answers_503() -> None:
    """With the module's name and when to come back."""
    process = Process(Scripted("bad", open=failing))
    refusal = process.refusal("/bad")
    process.registry.close()

    assert refusal is not None
    assert (refusal.status_code, refusal.problem_code) == (503, "module_unavailable")
    assert refusal.description == "The module bad, which has this route, is failed; GET /modules says more."
    assert refusal.headers == {"Retry-After": "1"}


def test_a_module_that_hangs_is_stuck_and_holds_nobody_up(gate: threading.Event) -> None:
    """The others are ready at once; when it comes back after all, it is ready as well."""
    slow, good = Scripted("slow", open=gate.wait), Scripted("good")
    process = Process(slow, good)
    opening = process.cell("slow").state
    process.registry.report_stuck(time.monotonic() + STUCK_SECONDS + 1)
    stuck = process.cell("slow")
    refused = process.refusal("/slow")
    gate.set()
    eventually(lambda: process.refusal("/slow") is None)
    process.registry.close()

    assert (opening, stuck.state, stuck.reason) == ("opening", "stuck", "open has run for 30 s")
    assert refused is not None
    assert good.calls[:2] == ["routes", "open"]


def test_a_check_says_what_is_wrong_until_it_is_not() -> None:
    """Degraded modules go on serving; a check that raises is wrong, too."""
    wrong: list[str | None] = ["the disk is full"]

    def check() -> str | None:
        if wrong[0] == "raise":
            failing()
        return wrong[0]

    process = Process(Scripted("a", check=check))
    seen = []
    for said in ("the disk is full", "raise", None):
        wrong[0] = said
        expected = {None: "", "raise": "check: RuntimeError: told to"}.get(said, said)
        eventually(partial(has_reason, process, expected))
        seen.append((process.cell("a").state, process.refusal("/a")))
    process.registry.close()

    assert seen == [("degraded", None), ("degraded", None), ("ready", None)]


def test_a_module_waits_for_those_that_it_requires(gate: threading.Event) -> None:
    """It is opened when they are ready, and says meanwhile what it waits for."""
    base, user = Scripted("base", open=gate.wait), Scripted("user", "base")
    process = Process(base, user)
    waiting = process.cell("user")
    calls = list(user.calls)
    gate.set()
    eventually(lambda: process.cell("user").state == "ready")
    process.registry.close()

    assert (waiting.state, waiting.reason, calls) == (
        "configured", "it requires the module base, which is not ready", [],
    )  # fmt: skip


def test_modules_are_closed_in_reverse() -> None:
    """Whoever requires another one is closed before it."""
    closed: list[str] = []
    base = Scripted("base", close=lambda: closed.append("base"))
    process = Process(base, Scripted("user", "base", close=lambda: closed.append("user")))
    eventually(lambda: process.cell("user").state == "ready")
    process.registry.close()

    assert closed == ["user", "base"]


def test_a_module_that_does_not_close_is_left_behind(gate: threading.Event) -> None:
    """The process ends in time."""
    process = Process(Scripted("a", close=gate.wait))
    eventually(lambda: process.cell("a").state == "ready")
    process.registry.close()

    assert process.cell("a").state == "ready"


def test_a_module_that_does_not_close_takes_no_time_of_the_others(gate: threading.Event) -> None:
    """Each has an equal part of what is left; the process waits for those that close in theirs."""
    closed: list[str] = []
    first, second = (Scripted(name, close=partial(closed.append, name)) for name in ("first", "second"))
    process = Process(first, second, Scripted("last", close=gate.wait))
    eventually(lambda: all(process.registry.is_usable(name) for name in ("first", "second", "last")))
    wanted = process.registry.close_seconds
    process.registry.close()

    assert wanted == pytest.approx(registry.CLOSE_SECONDS_MAX / registry.CLOSE_PART)
    assert closed == ["second", "first"]
    assert [process.cell(name).state for name in ("first", "second", "last")] == ["closed", "closed", "ready"]


def test_a_process_without_a_module_that_closes_needs_no_time_for_it() -> None:
    """Its drain has the whole graceful timeout."""

    class Plain(Module):
        name = "plain"

    process = Process(Plain())

    assert process.registry.close_seconds == 0.0


def test_a_module_that_could_not_be_opened_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Once what it needs is there, it is ready, and those that require it. The same error is logged once."""
    tries: list[int] = []

    def open_late() -> None:
        tries.append(1)
        if len(tries) < 4:
            failing()

    base, user = Scripted("base", open=open_late), Scripted("user", "base")
    process = Process(base, user)
    first = process.cell("base")
    eventually(lambda: process.cell("user").state == "ready")
    process.registry.close()

    assert (first.state, first.reason) == ("failed", "open: RuntimeError: told to")
    assert base.calls.count("routes") == 1
    assert [record.message for record in caplog.records if record.exc_info] == [
        "module base cannot be opened; it is tried again"
    ]


def test_a_module_waits_for_its_migrations() -> None:
    """They run in another process, which reports on the board."""
    module = Scripted("a")
    module.has_migration = True
    process = Process(module)
    waiting = process.cell("a").reason
    process.migrations["a"].write("a", 0, Cell(*DEAD, "failed", 0.0, "0001: no"))
    eventually(lambda: process.cell("a").reason == "its migrations are not done: 0001: no")
    process.migrations["a"].write("a", 0, Cell(*DEAD, "ready", 0.0))
    eventually(lambda: process.cell("a").state == "ready")
    process.registry.close()

    assert waiting == "its migrations are not done"


def test_a_module_that_killed_processes_is_left_out() -> None:
    """Counted over all rows, in the row of this process as well."""
    board = Board(["a"], 2)
    board.write("a", 0, Cell(*DEAD, "opening", 0.0, running="open", deaths=DEATHS_MAX - 2))
    board.write("a", 1, Cell(*DEAD, "opening", 0.0, running="open"))
    module = Scripted("a")
    process = Process(module, board=board)
    process.registry.close()

    assert (module.calls, process.cell("a").state) == ([], "failed")
    assert process.cell("a").reason == "left out, because 3 processes or more died in its methods"


def test_deaths_are_forgotten_once_a_module_was_usable_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill by an operator in the middle of a check counts as one, and must not add up over months."""
    monkeypatch.setattr(module_thread, "DEATHS_FORGOTTEN_SECONDS", 0.05)
    board = Board(["a"], 2)
    board.write("a", 0, Cell(*DEAD, "opening", 0.0, running="open"))
    process = Process(Scripted("a"), board=board)
    deaths = process.cell("a").deaths
    eventually(lambda: process.cell("a").deaths == 0)
    process.registry.close()

    assert deaths == 1


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        pytest.param({"/event": Nothing()}, "routes: ValueError: /event is a route already", id="taken"),
        pytest.param({"//event": Nothing()}, "routes: ValueError: //event is a route already", id="taken_with_slashes"),
        pytest.param({"/x": Nothing(), "//x": Nothing()}, "routes: ValueError: //x is a route already", id="twice"),
        pytest.param(
            {"event": Nothing()}, "routes: ValueError: the route 'event' does not begin with a slash", id="slash"
        ),
        pytest.param({"/{x}/{x}": Nothing()}, "routes: UnacceptableRouteError: Field names", id="field_twice"),
        pytest.param({"/x": Waiting()}, "routes: TypeError: ", id="coroutine"),
        pytest.param(
            {"/x": Undeclared()}, "routes: AssertionError: GET /x does not declare module_unavailable", id="undeclared"
        ),
    ],
)
def test_a_module_whose_routes_cannot_be_added_fails(routes: Mapping[str, Resource], reason: str) -> None:
    """None of them is added."""
    process = Process(Scripted("a", routes=lambda: routes))
    process.registry.close()

    assert (process.cell("a").state, process.routes) == ("failed", {})
    assert process.cell("a").reason.startswith(reason)


def test_routes_are_checked_without_compiling_a_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router compiles itself when it is first asked, and copies half a megabyte of shared pages into the worker."""
    monkeypatch.setattr(registry, "DefaultRouter", _Unasked)
    process = Process(Scripted("a", routes=lambda: {"/x": Nothing()}))
    process.registry.close()

    assert process.cell("a").state == "closed"
    assert list(process.routes) == ["/x"]


class _Unasked(DefaultRouter):
    def find(self, *_arguments: Any) -> NoReturn:
        raise AssertionError("the router was asked for a route")


def test_what_a_module_publishes_late_is_added_on_the_loop(gate: threading.Event) -> None:
    """`wake` is called from the module's thread; `add_published` adds the route."""

    def routes() -> Mapping[str, Resource]:
        gate.wait()
        return {"/late": Nothing()}

    process = Process(Scripted("a", routes=routes))
    before = dict(process.routes)
    gate.set()
    eventually(lambda: process.cell("a").state == "ready")
    process.apply()
    process.registry.close()

    assert (before, set(process.routes)) == ({}, {"/late"})


def test_what_cannot_be_added_to_the_application_fails_its_module_only() -> None:
    """The loop goes on, and adds what the other modules have published."""
    board = Board(["bad", "good"], 2)
    added: list[str] = []

    def add(published: Published) -> None:
        if published.module == "bad":
            failing()
        added.append(published.module)

    modules = [Scripted("bad"), Scripted("good")]
    both = Registry(
        modules, board, 0,
        context_of=lambda module: make_context(module, "worker", msgspec.UNSET, Config()),  # type: ignore[arg-type]
        migrations={}, routes={}, wake=lambda: None,
    )  # fmt: skip
    both.start()
    both.add_published(add)
    usable = [both.is_usable("bad"), both.is_usable("good")]
    cell = board.read("bad", 0)
    both.close()

    assert cell is not None
    assert (usable, set(added)) == ([False, True], {"good"})
    assert (cell.state, cell.reason) == ("failed", "its routes or authenticators cannot be added: told to")


def test_a_process_that_ends_in_order_is_no_death_of_a_module(gate: threading.Event) -> None:
    """A method that still runs when its process exits normally is not the cause."""
    process = Process(Scripted("a", close=gate.wait))
    eventually(lambda: process.cell("a").state == "ready")
    process.registry.close()

    assert process.cell("a").running == ""
