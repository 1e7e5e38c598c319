"""The loader: from names to modules in order, and no mistake of a module can harm the arbiter."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from app.lifecycle import loader
from app.lifecycle.contract import Module
from app.lifecycle.loader import Finder, load_modules, rehearse_settings
from app.lifecycle.rehearsal import Rehearsals, Shortage
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


def changed(name: str, **members: object) -> Module:
    """Return a module of that name with these members."""
    kind: type[Module] = type(name, (Plain,), {"name": name, **members})
    return kind()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Module]:
    """Modules that the loader finds as if they were built in, by name."""
    modules: dict[str, Module] = {}
    monkeypatch.setattr(loader, "BUILT_IN", modules)
    monkeypatch.setattr(loader, "_finder_of", lambda name: Finder(name, lambda: modules[name]))
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
    """The reason names the cycle."""
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
        pytest.param(
            changed("a", requires="bc"), "expected a tuple of names of modules as requires, found 'bc'", id="requires"
        ),
        pytest.param(
            changed("a", version=1), "expected a text as version, and true or false as required", id="version"
        ),
        pytest.param(
            changed("a", settings=dict), "expected a msgspec.Struct as settings, found <class 'dict'>", id="settings"
        ),
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
    """The module of docs/design/modules.md, installed as a package, loads and declares what the page says."""
    page = (ROOT / "docs/design/modules.md").read_text(encoding="utf-8")
    (tmp_path / "greeter.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    install(tmp_path, "greeter:module", "greeter")
    monkeypatch.syspath_prepend(str(tmp_path))
    (one,) = load_modules(["greeter"])

    assert one.module is not None, one.reason
    assert [setting.key for setting in settings_of(one.module.settings, "greeter.")] == ["greeter.word"]


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample module is installed, and this process has not imported it yet."""
    install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(loader, "_imported", {})
    monkeypatch.setattr(loader, "_judged", {})


class RehearsalCounter(Rehearsals):
    """Counts what is rehearsed."""

    count = 0

    def rehearse(self, name: str, work: Callable[[], object]) -> str:
        """Count it."""
        self.count += 1
        return super().rehearse(name, work)


def test_what_is_imported_already_is_not_rehearsed_again(sample: None) -> None:
    """A reload finds the same module; its settings are tried again only when their text has changed."""
    first, second = RehearsalCounter(), RehearsalCounter()
    (one,) = load_modules(["sample"], first)
    (two,) = load_modules(["sample"], second)
    for rehearsals, text in ((first, "1"), (second, "1"), (second, "2")):
        assert rehearse_settings(rehearsals, "sample", msgspec.Struct, text, lambda: None) == ""

    assert one.module is not None
    assert two.module is one.module
    assert (first.count, second.count) == (2, 1)


def test_a_machine_without_descriptors_is_no_fault_of_the_module(sample: None) -> None:
    """Nothing is known of it then. Later it is found, although importlib remembers what it has not read."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), hard))
    try:
        with pytest.raises(Shortage, match="the machine is too short of something to load the module sample: "):
            load_modules(["sample"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert [(one.name, one.reason) for one in load_modules(["sample"])] == [("sample", "")]


def test_a_machine_without_processes_is_no_fault_of_the_module(sample: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork fails; no descriptor is left open."""

    def no_fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", no_fork)
        with pytest.raises(Shortage, match="Resource temporarily unavailable"):
            load_modules(["sample"])

    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert [one.reason for one in load_modules(["sample"])] == [""]
