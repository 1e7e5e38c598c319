"""The contract of a module: what it declares, what it is handed, and what each phase may do.

A module is one object of a subclass of `Module`, named `module`, in a Python module that `app.lifecycle.loader` finds
by name. Every member has a default, so a module declares only what it has.

Invariants:
- Importing a module imports this contract and its settings, and nothing heavy: the arbiter imports it.
- Nothing else of a module runs in the arbiter but `children` and `migrations`, which only declare.
- Whatever a module raises, and however long it takes, the server keeps serving; `app.lifecycle.registry` keeps it off
  the event loop.

Threading: `routes`, `authenticators`, `open`, `check` and `close` run on a thread of the module's own, one after the
other. The responders and authenticators that they return run on the event loop, or on the worker's pool if the
operation `blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from logging import Logger
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import msgspec

from core.version import VERSION

if TYPE_CHECKING:
    import argparse

    from prometheus_client import Counter, Gauge, Histogram

    from app.api.access.gate import Authenticator
    from app.api.operation import Resource
    from app.processes.child import Access, ChildContext
    from core.settings.config import Config


class NoSettings(msgspec.Struct, frozen=True):
    """The settings of a module that has none."""


class ModuleChild(NamedTuple):
    """A process that the arbiter supervises for a module. Called `<module>-<name>` in logs, metrics and reports.

    `run(context, child)` is called in the process, after the module was opened there, and returns the exit status. It
    must call `child.beat()` or `child.wait()` at least every `silence_seconds` (0.5 or more). `access` is what it sees
    of the block. Above `memory_size_max` bytes of anonymous memory (0: no limit) it is replaced. Opening the module may
    take `start_seconds` (0.5 to 600), for example to load a model; then the process is replaced.
    """

    name: str
    run: Callable[[ModuleContext, ChildContext], int]
    access: Access
    silence_seconds: float = 30.0
    memory_size_max: int = 0
    start_seconds: float = 60.0


class Migration(NamedTuple):
    """One step from an older form of the module's data to the next.

    `apply(context)` runs in a process of its own before anything of the module is opened, in the order in which
    migrations are declared. It runs again at every start, and must change nothing where it has been applied before.
    """

    name: str
    apply: Callable[[ModuleContext], None]


class Command(NamedTuple):
    """A subcommand of `mlsdm`: `run(arguments)` returns the exit status."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Module:
    """A module. A subclass overrides what it has; every default stands for "nothing of this kind"."""

    #: What configuration, logs, metrics and `GET /modules` call it: `[a-z][a-z0-9_]{0,19}`.
    name: ClassVar[str]
    version: ClassVar[str] = VERSION
    #: Modules that must be ready before this one is opened.
    requires: ClassVar[tuple[str, ...]] = ()
    #: Whether the server must not run without it; the setting `modules.required` can only add to this.
    required: ClassVar[bool] = False
    #: The section of the configuration that is named like the module; every leaf has a default.
    settings: ClassVar[type[msgspec.Struct]] = NoSettings

    def children(self, _settings: msgspec.Struct) -> Sequence[ModuleChild]:
        """Return the processes that this module needs under these settings. Declares only; called in the arbiter."""
        return ()

    def migrations(self) -> Sequence[Migration]:
        """Return the migrations, oldest first. Declares only; called in the arbiter."""
        return ()

    def commands(self) -> Sequence[Command]:
        """Return the subcommands of `mlsdm` that this module adds. Declares only; called by the command."""
        return ()

    def routes(self, _context: ModuleContext) -> Mapping[str, Resource]:
        """Return path → resource, without waiting for anything. Until the module is ready, each answers 503."""
        return {}

    def authenticators(self, _context: ModuleContext) -> Sequence[Authenticator]:
        """Return what identifies clients besides API keys. Called after `open`.

        A module that overrides this closes a server without API keys from the start, even if the module fails to open.
        """
        return ()

    def open(self, _context: ModuleContext) -> None:
        """Open what this process needs: connections, pools. Raises what keeps the module from being ready.

        After an exception it is called again later, so it must close what it has opened before it raises.
        """
        return

    def check(self) -> str | None:
        """Return what is wrong, as a sentence; None when nothing is. Called once a second while the module is open."""
        return None

    def close(self) -> None:
        """Close what `open` opened, and end its threads. Called once, after the last request.

        All modules of a process share CLOSE_SECONDS_MAX (docs/design/modules.md).
        """
        return


class ModuleContext(msgspec.Struct, frozen=True):
    """What a module is handed in each process that opens it.

    `role` is `worker`, or the name of the child. `settings` is the module's own section, `config` the core's.
    """

    module: str
    role: str
    settings: msgspec.Struct
    config: Config
    log: Logger
    #: Returns every route of this process: path → resource, those of other modules included.
    operations: Callable[[], Mapping[str, Resource]]
    #: Makes a metric called `mlsdm_<module>_<name>`: (name, help text, label names).
    counter: Callable[[str, str, Sequence[str]], Counter]
    gauge: Callable[[str, str, Sequence[str]], Gauge]
    histogram: Callable[[str, str, Sequence[str]], Histogram]
    #: Returns a context manager that records a span of that name; does nothing while tracing is off.
    span: Callable[[str], AbstractContextManager[object]]

    def environ_key(self, name: str) -> str:
        """Return the key of the WSGI environ under which this module may keep something of a request."""
        return f"mlsdm.{self.module}.{name}"
