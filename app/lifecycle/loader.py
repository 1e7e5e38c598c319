"""The loader: from the names in `modules.enabled` to modules in the order in which they are opened.

Names are resolved here and nowhere else: built-in modules by the table below, others by the entry point group
`mlsdm.modules` of installed packages. A package that is not named is not imported.

Invariants: `load_modules` and `declare` never raise for a module's mistake: they report it, and the module is left out.
A module that is not built in runs first in a rehearsal, a fork with a deadline and a bound on memory: one that hangs,
dies or grows at its import cannot harm the arbiter.
Rejected: importing every installed entry point to ask what it is; a package would run code because it is installed.
"""

import importlib
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Final

import msgspec

from app.lifecycle.contract import Migration, Module, ModuleChild
from core.settings.tree import settings_of
from core.startup import FoundSections

BUILT_IN: Final[Mapping[str, str]] = {"openapi": "modules.openapi.module"}
GROUP: Final = "mlsdm.modules"
REHEARSAL_SECONDS_MAX: Final = 5.0
REHEARSAL_SIZE_MAX: Final = 1 << 30  # bytes of address space beyond those of the arbiter


@dataclass
class FoundModule:
    """One name of `modules.enabled`. `module` is None, and `reason` says why, when it was left out."""

    name: str
    module: Module | None = None
    reason: str = ""
    phases: dict[str, float] = field(default_factory=dict)  # milliseconds
    children: Sequence[ModuleChild] = ()
    migrations: Sequence[Migration] = ()
    guards: bool = False  # it may authenticate clients; stays true when the module is left out later

    def leave_out(self, reason: str) -> None:
        """Say why this module is not opened."""
        self.module, self.reason, self.children, self.migrations = None, reason, (), ()


def load_modules(names: Sequence[str]) -> list[FoundModule]:
    """Import the modules of these names, and return them so that each stands behind those that it requires."""
    found = {name: _load_one(name) for name in names}
    ordered: dict[str, FoundModule] = {}
    for loaded in found.values():
        _order(loaded, found, ordered, ())
    return list(ordered.values())


def sections_of(found: Sequence[FoundModule]) -> FoundSections:
    """Return the sections of the configuration that these modules have, and those of built-in ones that are not loaded.

    None stands for the section of a module that was left out.
    """
    missing = [name for name in BUILT_IN if name not in {one.name for one in found}]
    sections: dict[str, type[msgspec.Struct] | None] = {}
    for one in (*found, *map(_load_one, missing)):
        if one.module is None:
            sections[one.name] = None
        elif one.module.settings.__struct_fields__:
            sections[one.name] = one.module.settings
    return sections


def declare(loaded: FoundModule, settings: msgspec.Struct) -> None:
    """Ask a module for its children and migrations under these settings."""
    module = loaded.module
    if module is None:
        return

    def ask() -> None:
        loaded.children, loaded.migrations = tuple(module.children(settings)), tuple(module.migrations())
        assert all(isinstance(child, ModuleChild) for child in loaded.children), "children() returned something else"

    began = time.monotonic()
    if loaded.name not in BUILT_IN and (reason := rehearse(ask)):
        loaded.leave_out(f"children: {reason}")
        return
    try:
        ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, the arbiter goes on without this module
        loaded.leave_out(f"children: {type(error).__name__}: {error}")
    loaded.phases["children"] = _milliseconds_since(began)


def _load_one(name: str) -> FoundModule:
    loaded, began = FoundModule(name), time.monotonic()
    try:
        find = _finder_of(name)
        if name not in BUILT_IN and (reason := rehearse(find)):
            loaded.leave_out(f"import: {reason}")
        else:
            loaded.module = _checked(name, find())
            loaded.guards = type(loaded.module).authenticators is not Module.authenticators
    except Exception as error:  # noqa: BLE001 - whatever it is, the server goes on without this module
        loaded.leave_out(f"import: {type(error).__name__}: {error}")
    loaded.phases["import"] = _milliseconds_since(began)
    return loaded


def _finder_of(name: str) -> Callable[[], object]:
    """Return what imports the module of that name."""
    if name in BUILT_IN:
        return lambda: importlib.import_module(BUILT_IN[name]).module
    found = [*entry_points(group=GROUP, name=name)]
    if not found:
        known = ", ".join(sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))}))
        raise LookupError(f"no module has that name; known: {known}")
    load_point: Callable[[], object] = found[0].load
    return load_point


def _checked(name: str, module: object) -> Module:
    """Return what was imported as a module of that name; raises TypeError when it is none."""
    if not isinstance(module, Module):
        raise TypeError(f"expected an instance of app.lifecycle.contract.Module, found {type(module).__name__}")
    if module.name != name:
        raise TypeError(f"it calls itself {module.name!r}")
    for _ in settings_of(module.settings, f"{name}."):  # raises for a leaf that is not declared as it must be
        pass
    return module


def _order(
    loaded: FoundModule, found: Mapping[str, FoundModule], ordered: dict[str, FoundModule], path: tuple[str, ...]
) -> None:
    """Put a module behind those that it requires; leave it out when one of them is missing."""
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


# -- the rehearsal -----------------------------------------------------------------------------------------------------


def rehearse(work: Callable[[], object]) -> str:
    """Do `work` in a fork, and return why it would have done harm here, "" if it would not."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _rehearse_here(work, writing)
    os.close(writing)
    said = b""
    try:
        deadline = time.monotonic() + REHEARSAL_SECONDS_MAX
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([reading], [], [], left)[0]:
                break
            chunk = os.read(reading, 4096)
            if not chunk:
                return said.decode(errors="replace")[1:] if said else "the process died"
            said += chunk
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # Gunicorn's arbiter may have reaped it
            os.waitpid(pid, 0)
    return f"it took more than {REHEARSAL_SECONDS_MAX:g} s"


def _rehearse_here(work: Callable[[], object], writing: int) -> None:
    """In the fork: do the work under a bound of memory, write `=` and what was raised, and leave."""
    said = "="
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        with open("/proc/self/statm", encoding="ascii") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + REHEARSAL_SIZE_MAX, size + REHEARSAL_SIZE_MAX))
        work()
    except BaseException as error:  # noqa: BLE001 - that is what is asked
        said = f"={type(error).__name__}: {error}"
    finally:
        os.write(writing, said[:1000].encode(errors="replace"))
        os._exit(0)


def _milliseconds_since(began: float) -> float:
    return round((time.monotonic() - began) * 1e3, 3)
