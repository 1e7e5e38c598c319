"""The loader: from the names in `modules.enabled` to modules in the order in which they are opened.

Names are resolved here and nowhere else: built-in modules by the table below, others by the entry point group
`mlsdm.modules` of installed packages. A package that is not named is not imported.

Invariants: `load_modules` and `declare` never raise for a module's mistake: they report it, and the module is left out.
They raise Shortage when the machine cannot load it now. Code of a module that is not built in runs in a rehearsal
(`app.lifecycle.rehearsal`) before it runs in the arbiter; a reload rehearses only what has changed.
Rejected: importing every installed entry point to ask what it is; a package would run code because it is installed.
"""

import importlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import MetadataPathFinder, entry_points
from typing import Final, NamedTuple

import msgspec

from app.lifecycle.contract import Migration, Module, ModuleChild
from app.lifecycle.rehearsal import Rehearsals, Shortage, has_descriptors, shortage_in
from core.settings import module_names
from core.settings.tree import settings_of
from core.startup import FoundSections

BUILT_IN: Final[Mapping[str, str]] = {"openapi": "modules.openapi.module"}
GROUP: Final = "mlsdm.modules"
# What this process has imported, by name, with the entry point's value: Python does not import it again either.
_imported: Final[dict[str, tuple[str, Module]]] = {}
# The sections whose settings were rehearsed, by module, with the text that was given for them.
_judged: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {}


class Finder(NamedTuple):
    """How a module is imported. `value` is the entry point's."""

    value: str
    load: Callable[[], object]


class FoundModule(msgspec.Struct):
    """One name of `modules.enabled`. `module` is None, and `reason` says why, when it was left out."""

    name: str
    module: Module | None = None
    reason: str = ""
    phases: dict[str, float] = {}  # milliseconds
    children: Sequence[ModuleChild] = ()
    migrations: Sequence[Migration] = ()
    guards: bool = False  # it may authenticate clients; stays true when it is left out later, also by a reload

    def leave_out(self, reason: str) -> None:
        """Note that this module is not opened, and why."""
        self.module, self.reason, self.children, self.migrations = None, reason, (), ()


def problems_of(found: Sequence[FoundModule], required: Collection[str]) -> list[str]:
    """Return a sentence for each module that is left out and in `required`."""
    return [
        f"modules.required: the module {one.name} is left out: {one.reason}"
        for one in found
        if one.module is None and one.name in required
    ]


def load_modules(names: Sequence[str], rehearsals: Rehearsals | None = None) -> list[FoundModule]:
    """Import the modules of these names, and return them so that each comes after those that it requires.

    Raises Shortage when the machine cannot load one of them now.
    """
    MetadataPathFinder().invalidate_caches()  # a look-up without descriptors finds nothing and caches that
    found = {name: _load_one(name, rehearsals or Rehearsals()) for name in names}
    ordered: dict[str, FoundModule] = {}
    for loaded in found.values():
        _order(loaded, found, ordered, ())
    return list(ordered.values())


def sections_of(found: Sequence[FoundModule]) -> FoundSections:
    """Return the sections of the configuration that these modules have, and those of built-in ones that are not loaded.

    None stands for the section of a module that was left out.
    """
    missing = [name for name in BUILT_IN if name not in {module.name for module in found}]
    sections: dict[str, type[msgspec.Struct] | None] = {}
    for loaded in (*found, *(_load_one(name, Rehearsals()) for name in missing)):
        if loaded.module is None:
            sections[loaded.name] = None
        elif loaded.module.settings.__struct_fields__:
            sections[loaded.name] = loaded.module.settings
    return sections


def rehearse_settings(
    rehearsals: Rehearsals, name: str, section: type[msgspec.Struct], text: str, work: Callable[[], object]
) -> str:
    """Try what reads the settings of a module, unless it was tried with this text; as `core.startup.Rehearse` says."""
    if name in BUILT_IN or _judged.get(name) == (section, text):
        return ""
    if reason := rehearsals.rehearse(name, work):
        return reason
    try:
        work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it did not in the rehearsal, and does now
        return f"{type(error).__name__}: {error}"
    _judged[name] = (section, text)
    return ""


def declare(loaded: FoundModule, settings: msgspec.Struct, rehearsals: Rehearsals | None = None) -> None:
    """Ask a module for its children and migrations under these settings. Raises Shortage."""
    module = loaded.module
    if module is None:
        return

    def ask() -> None:
        loaded.children, loaded.migrations = tuple(module.children(settings)), tuple(module.migrations())
        if not all(isinstance(child, ModuleChild) for child in loaded.children):
            raise TypeError("children() returned something else than ModuleChild")

    began = time.monotonic()
    try:
        if loaded.name not in BUILT_IN and (reason := (rehearsals or Rehearsals()).rehearse(loaded.name, ask)):
            loaded.leave_out(f"children: {reason}")
        else:
            ask()
    except Shortage:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the arbiter goes on without this module
        loaded.leave_out(f"children: {type(error).__name__}: {error}")
    loaded.phases["children"] = _milliseconds_since(began)


def _load_one(name: str, rehearsals: Rehearsals) -> FoundModule:
    loaded, began = FoundModule(name), time.monotonic()
    try:
        loaded.module = _import(name, rehearsals)
        loaded.guards = type(loaded.module).authenticators is not Module.authenticators
    except _LeftOut as error:
        loaded.leave_out(f"import: {error}")
    except Shortage:
        raise
    except (Exception, SystemExit) as error:
        if lack := shortage_in(error):
            raise Shortage(name, lack) from error
        loaded.leave_out(f"import: {type(error).__name__}: {error}")
    loaded.phases["import"] = _milliseconds_since(began)
    return loaded


class _LeftOut(Exception):
    """What a rehearsal has reported."""


def _import(name: str, rehearsals: Rehearsals) -> Module:
    """Return the module of that name. What this process has imported already is neither rehearsed nor judged again."""
    finder = _finder_of(name)
    value, module = _imported.get(name, ("", None))
    if module is not None and value == finder.value:
        return module
    if name not in BUILT_IN and (reason := rehearsals.rehearse(name, lambda: _checked(name, finder.load()))):
        raise _LeftOut(reason)
    module = _checked(name, finder.load())
    if name not in BUILT_IN:
        _imported[name] = (finder.value, module)
    return module


def _finder_of(name: str) -> Finder:
    """Return how the module of that name is imported."""
    if name in BUILT_IN:
        return Finder(BUILT_IN[name], lambda: importlib.import_module(BUILT_IN[name]).module)
    found = [*entry_points(group=GROUP, name=name)]
    if not found:
        if not has_descriptors():
            raise Shortage(name, "there are no descriptors to read what is installed")
        known = ", ".join(sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))}))
        raise LookupError(f"no module has that name; known: {known}")
    return Finder(found[0].value, found[0].load)


def _checked(name: str, module: object) -> Module:
    """Return what was imported as a module of that name; raises TypeError when it is not one."""
    if not isinstance(module, Module):
        raise TypeError(f"expected an instance of app.lifecycle.contract.Module, found {type(module).__name__}")
    if module.name != name:
        raise TypeError(f"it calls itself {module.name!r}")
    if not isinstance(module.version, str) or not isinstance(module.required, bool):
        raise TypeError("expected a text as version, and true or false as required")
    if not isinstance(module.requires, tuple) or not all(map(module_names.is_name, module.requires)):
        raise TypeError(f"expected a tuple of names of modules as requires, found {module.requires!r}")
    if not isinstance(module.settings, type) or not issubclass(module.settings, msgspec.Struct):
        raise TypeError(f"expected a msgspec.Struct as settings, found {module.settings!r}")
    for _ in settings_of(module.settings, f"{name}."):  # raises for a leaf that is not declared as it must be
        pass
    return module


def _order(
    loaded: FoundModule, found: Mapping[str, FoundModule], ordered: dict[str, FoundModule], path: tuple[str, ...]
) -> None:
    """Put a module after those that it requires; leave it out when one of them is missing."""
    if loaded.name in ordered:
        return
    for name in loaded.module.requires if loaded.module else ():
        required = found.get(name)
        if name in (*path, loaded.name):
            loaded.leave_out(f"it requires itself: {' → '.join((*path, loaded.name, name))}")
        elif required is None:
            loaded.leave_out(f"it requires the module {name}, which modules.enabled does not name")
        else:
            _order(required, found, ordered, (*path, loaded.name))
            if required.module is None:
                loaded.leave_out(f"it requires the module {name}, which is left out")
        if loaded.module is None:
            break
    ordered[loaded.name] = loaded


def _milliseconds_since(began: float) -> float:
    return round((time.monotonic() - began) * 1e3, 3)
