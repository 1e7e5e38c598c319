"""The loader: from names to modules in order, and nothing of a module can harm the arbiter."""

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from app.lifecycle import loader
from app.lifecycle.contract import Module
from app.lifecycle.loader import load_modules, rehearse
from core.settings.tree import settings_of
from testing.live_server import ROOT
from testing.sample_module.installed import install


class Plain(Module):
    """A module of which tests make others."""

    name = "plain"


def make_module(name: str, *requires: str) -> Module:
    """Return a module of that name."""
    members: dict[str, object] = {"name": name, "requires": requires}
    kind: type[Module] = type(name, (Plain,), members)
    return kind()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Module]:
    """Modules that the loader finds as if they were built in, by name."""
    modules: dict[str, Module] = {}
    monkeypatch.setattr(loader, "BUILT_IN", modules)
    monkeypatch.setattr(loader, "_finder_of", lambda name: lambda: modules[name])
    return modules


def test_modules_stand_behind_those_that_they_require(installed: dict[str, Module]) -> None:
    """Whatever the order of their names; others keep theirs."""
    for module in (make_module("a", "c"), make_module("b"), make_module("c", "d"), make_module("d")):
        installed[module.name] = module

    assert [one.name for one in load_modules("abcd")] == ["d", "c", "a", "b"]


def test_a_module_whose_requirement_is_missing_is_left_out(installed: dict[str, Module]) -> None:
    """So is one that requires that module in turn; the rest is loaded."""
    for module in (make_module("a", "b"), make_module("b", "x"), make_module("c")):
        installed[module.name] = module

    assert [(one.name, one.module is None, one.reason) for one in load_modules("abc")] == [
        ("b", True, "it requires the module x, which modules.enabled does not name"),
        ("a", True, "it requires the module b, which is left out"),
        ("c", False, ""),
    ]


def test_modules_that_require_each_other_are_left_out(installed: dict[str, Module]) -> None:
    """The reason names the circle."""
    for module in (make_module("a", "b"), make_module("b", "a"), make_module("c")):
        installed[module.name] = module
    reasons = {one.name: one.reason for one in load_modules("abc")}

    assert reasons == {
        "a": "it requires the module b, which is left out",
        "b": "it requires itself: a → b → a",
        "c": "",
    }


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        pytest.param(object(), "expected an instance of app.lifecycle.contract.Module, found object", id="no_module"),
        pytest.param(make_module("b"), "it calls itself 'b'", id="other_name"),
    ],
)
def test_what_is_no_module_is_left_out(installed: dict[str, Module], module: Module, reason: str) -> None:
    """It is not called, and the reason says what was found."""
    installed["a"] = module
    (one,) = load_modules("a")

    assert (one.module, one.reason) == (None, f"import: TypeError: {reason}")


def test_an_unknown_name_is_left_out_and_the_known_ones_are_named() -> None:
    """As an operator misspells it."""
    (one,) = load_modules(["opnapi"])

    assert (one.module, one.reason) == (None, "import: LookupError: no module has that name; known: openapi")


def test_a_package_that_is_not_named_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is installed, and its import would fail loudly."""
    install(tmp_path, "a_package_that_does_not_exist:module")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert [one.reason for one in load_modules(["openapi"])] == [""]
    assert [one.reason for one in load_modules(["sample"])] == [
        "import: ModuleNotFoundError: No module named 'a_package_that_does_not_exist'"
    ]


def _grow() -> None:
    kept = []
    while True:
        kept.append(bytes(1 << 26))


def test_a_rehearsal_tells_what_would_have_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork: here nothing is raised, nobody dies, and no memory is gone."""
    monkeypatch.setattr(loader, "REHEARSAL_SECONDS_MAX", 60.0)

    assert rehearse(lambda: None) == ""
    assert rehearse(lambda: 1 / 0) == "ZeroDivisionError: division by zero"
    assert rehearse(lambda: sys.exit(3)) == "SystemExit: 3"
    assert rehearse(lambda: os._exit(3)) == "the process died"
    assert rehearse(_grow) == "MemoryError: "


def test_a_rehearsal_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is gone, too."""
    monkeypatch.setattr(loader, "REHEARSAL_SECONDS_MAX", 0.2)

    before = {child.pid for child in psutil.Process().children()}  # servers of other tests, which share this process

    assert rehearse(lambda: time.sleep(3600)) == "it took more than 0.2 s"
    assert {child.pid for child in psutil.Process().children()} <= before


def test_children_are_asked_for_with_the_settings(installed: dict[str, Module]) -> None:
    """A module whose `children` raises is left out."""

    class Raising(Plain):
        settings: ClassVar = Plain.settings

        def children(self, _settings: object) -> list[object]:  # type: ignore[override] # that is the mistake
            raise RuntimeError("no")

    installed["plain"] = Raising()
    (one,) = load_modules(["plain"])
    loader.declare(one, one.module.settings() if one.module else Plain.settings())

    assert (one.module, one.reason) == (None, "children: RuntimeError: no")


def test_the_module_of_the_design_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/design/modules.md shows a whole module; installed as a package, it loads and declares what the page says."""
    page = (ROOT / "docs/design/modules.md").read_text(encoding="utf-8")
    (tmp_path / "greeter.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    install(tmp_path, "greeter:module", "greeter")
    monkeypatch.syspath_prepend(str(tmp_path))
    (one,) = load_modules(["greeter"])

    assert one.module is not None, one.reason
    assert [setting.key for setting in settings_of(one.module.settings, "greeter.")] == ["greeter.word"]
