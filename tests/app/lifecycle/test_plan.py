"""The plan: which children a configuration runs, and what a reload keeps of the plan before."""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from app.lifecycle import loader
from app.lifecycle.contract import Migration, Module, ModuleChild
from app.lifecycle.loader import FoundModule
from app.lifecycle.plan import MODULE_CHILDREN_MAX, Plan
from app.lifecycle.report import Cell
from app.processes.child import Access
from core.settings import module_names
from shm.process import identify_self


class Settings(msgspec.Struct, frozen=True):
    """The section of the module."""

    number: int = 0


class Scripted(Module):
    """A module with the children and migrations that the test gives it."""

    settings: ClassVar[type[msgspec.Struct]] = Settings

    def __init__(self, name: str, *children: Any, requires: tuple[str, ...] = (), migrates: bool = False) -> None:
        self.name = name  # type: ignore[misc] # one for each object here
        self.requires = requires  # type: ignore[misc]
        self._children = children
        self._migrates = migrates

    def children(self, _settings: msgspec.Struct) -> Sequence[ModuleChild]:
        """Return what it was given."""
        return self._children

    def migrations(self) -> Sequence[Migration]:
        """Return one, or none."""
        return [Migration("0001", print)] if self._migrates else []


def child(name: str, silence_seconds: Any = 1.0) -> ModuleChild:
    """Return a declared child."""
    return ModuleChild(name, lambda _context, _child: 0, Access.NONE, silence_seconds)


def plan(*modules: Module, number: int = 0, before: Plan | None = None) -> Plan:
    """Return the plan of these modules, as a reload makes it after `before`."""
    found = [FoundModule(module.name, module) for module in modules]
    return Plan(found, {module.name: Settings(number) for module in modules}, (), 2, before)


@pytest.fixture(autouse=True)
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rehearsal: the modules are those of this file."""
    monkeypatch.setattr(loader, "BUILT_IN", dict.fromkeys("ab"))


def reasons(of: Plan) -> dict[str, str]:
    """Return why modules were left out."""
    return {module.name: module.reason for module in of.report().modules() if module.state == "failed"}


def test_the_longest_name_of_a_module_leaves_room_for_its_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the configuration accepts as a name can be supervised."""
    name = "m" * module_names.NAME_LENGTH_MAX
    monkeypatch.setattr(loader, "BUILT_IN", {name: ""})
    made = plan(Scripted(name, migrates=True))

    assert module_names.parse(name) == (name,)
    assert (reasons(made), [one.name for one in made.children]) == ({}, [f"{name}-migrations"])


def test_children_and_migrations_are_supervised() -> None:
    """Their names begin with the module's."""
    made = plan(Scripted("a", child("x"), child("y"), migrates=True), Scripted("b"))

    assert [(one.name, one.once) for one in made.children] == [("a-migrations", True), ("a-x", False), ("a-y", False)]
    assert list(made.migrations) == ["a"]


@pytest.mark.parametrize(
    ("children", "reason"),
    [
        pytest.param([child("x"), child("x")], "children: two children have the same name", id="twice"),
        pytest.param([child("migrations")], "children: two children have the same name", id="migrations"),
        pytest.param(
            [child("x" * 31)],
            f"children: the child {'x' * 31!r}: expected a name of at most 30 characters, because a-<name> has at most",
            id="long_name",
        ),
        pytest.param([child("x", "5")], "children: ", id="wrong_type"),
        pytest.param([object()], "children: TypeError: children() returned something else", id="no_child"),
        pytest.param(
            [child(f"x{number}") for number in range(MODULE_CHILDREN_MAX)],
            f"children: all modules together declare more than {MODULE_CHILDREN_MAX} children",
            id="too_many",
        ),
    ],
)
def test_a_module_whose_children_cannot_be_supervised_is_left_out(children: list[Any], reason: str) -> None:
    """So is one that requires it; the arbiter goes on."""
    made = plan(Scripted("a", *children, migrates=True), Scripted("b", requires=("a",)))

    assert made.children == []
    assert reasons(made)["a"].startswith(reason)
    assert reasons(made)["b"] == "it requires the module a, which is left out"


def test_a_module_is_asked_again_only_when_its_settings_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload keeps what it has declared."""
    asked: list[str] = []

    def migrations(self: Scripted) -> Sequence[Migration]:
        asked.append(self.name)
        return []

    monkeypatch.setattr(Scripted, "migrations", migrations)
    module = Scripted("a", child("x"))
    first = plan(module)
    second = plan(module, before=first)
    third = plan(module, number=1, before=second)

    assert asked == ["a", "a"]
    assert [[one.name for one in made.children] for made in (first, second, third)] == [["a-x"]] * 3


def test_migrations_outlive_a_reload_while_the_settings_stay() -> None:
    """One that still runs writes where the workers of the next plan look; with other settings it runs again."""
    first = plan(Scripted("a", migrates=True))
    second = plan(Scripted("a", migrates=True), before=first)
    first.migrations["a"].write("a", 0, Cell(*identify_self(), "ready", 0.0))
    cell = second.migrations["a"].read("a", 0)
    third = plan(Scripted("a", migrates=True), number=1, before=second)

    assert cell is not None
    assert cell.state == "ready"
    assert third.migrations["a"].read("a", 0) is None


def test_a_reload_that_does_not_find_a_module_again_keeps_the_server_closed() -> None:
    """Its package may be in the middle of an update, and nobody else may know who is a client."""

    first = Plan([FoundModule("a", Scripted("a"), guards=True)], {}, (), 2)
    second = Plan([FoundModule("a", reason="import: no")], {}, (), 2, first)
    third = Plan([FoundModule("a", reason="import: no")], {}, (), 2, second)
    fourth = Plan([FoundModule("a", Scripted("a"))], {}, (), 2, third)
    fifth = Plan([], {}, (), 2, third)

    assert [made.guards for made in (second, third, fourth, fifth)] == [True, True, False, False]
