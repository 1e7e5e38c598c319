"""The plan: which modules this configuration runs, decided in the arbiter before the fork.

Owns: the board on which all processes report, and the children that the modules declare, in the supervisor's form.
A reload makes a new plan for the new workers; the old workers keep theirs until they have drained.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from app.lifecycle.context import make_context
from app.lifecycle.contract import Migration, Module, ModuleChild
from app.lifecycle.loader import FoundModule, declare, problems_of
from app.lifecycle.rehearsal import Rehearsals
from app.lifecycle.report import Board, Cell, Declared, Report
from app.processes.child import Child, ChildContext
from app.processes.child_table import CHILDREN_MAX, NAME_SIZE_MAX, ChildState
from app.telemetry.series import measure_into_files_of
from core.settings import module_names
from shm.process import identify_self

MIGRATIONS: Final = "migrations"  # the name of the child that runs them
MIGRATION_SECONDS_MAX: Final = 600.0  # for one migration; then its process is killed and started again
MIGRATION_SIZE_MAX: Final = 512_000_000  # bytes of anonymous memory
MODULE_CHILDREN_MAX: Final = CHILDREN_MAX // 2  # at a reload the old ones may still be ending
_WAIT_SECONDS: Final = 0.1  # between two checks of a child whether the migrations are done

log = logging.getLogger("mlsdm.modules")

assert module_names.NAME_LENGTH_MAX + len(f"-{MIGRATIONS}") <= NAME_SIZE_MAX


class Plan:
    """The modules of one configuration."""

    def __init__(
        self,
        loaded: Sequence[FoundModule],
        sections: Mapping[str, msgspec.Struct],
        required: Collection[str],
        rows: int,
        before: "Plan | None" = None,
        *,
        rehearsals: Rehearsals | None = None,
    ) -> None:
        """`loaded` is in the order in which modules are opened; `sections` holds their settings by name; `required` are
        the names in `modules.required`; `rows` is the number of worker rows; `before` is the plan that this one
        replaces. Raises Shortage when descriptors, processes, memory or time do not suffice to rehearse a module.
        """
        self.sections = {
            found.name: sections.get(found.name, found.module.settings())
            for found in loaded
            if found.module is not None
        }
        self._loaded = loaded
        self._required = set(required)
        self._required |= {found.name for found in loaded if found.module is not None and found.module.required}
        self.children: list[Child] = []
        self.board = Board([found.name for found in loaded], rows)
        # A board for the migrations of each module. It outlives the plan while the settings stay the same, because a
        # migration that has run, or is running, is not started again.
        self.migrations: dict[str, Board] = {}
        guarding = {found.name for found in before._loaded if found.guards} if before is not None else ()
        for found in loaded:
            found.guards = found.guards or (found.module is None and found.name in guarding)
            self._declare(found, before, rehearsals or Rehearsals())

    @property
    def guards(self) -> bool:
        """Whether a module may authenticate clients. A module that was left out after its import counts."""
        return any(found.guards for found in self._loaded)

    @property
    def modules(self) -> list[Module]:
        """The modules that are opened, in order."""
        return [found.module for found in self._loaded if found.module is not None]

    @property
    def problems(self) -> list[str]:
        """A sentence for each required module that was left out."""
        return problems_of(self._loaded, self._required)

    def log_left_out(self) -> None:
        """Log why modules were left out. To be called when the log is configured."""
        for found in self._loaded:
            if found.module is None:
                log.error("module %s is left out: %s", found.name, found.reason)

    def find_unchanged(self, module: Module, settings: msgspec.Struct) -> FoundModule | None:
        """Return what this module has declared under these settings; None if this plan has not asked it."""
        same = next((found for found in self._loaded if found.module is module), None)
        return same if same is not None and self.sections[same.name] == settings else None

    def report(self, children: Callable[[], Mapping[str, ChildState]] = dict) -> Report:
        """Return the report of these modules; `children()` returns the supervised processes by name."""
        now = time.time()
        declared = [
            Declared(
                found.name,
                found.module.version if found.module else "",
                found.module.requires if found.module else (),
                found.name in self._required,
                "configured" if found.module else "failed",
                now,
                found.reason,
                found.phases,
            )
            for found in self._loaded
        ]
        return Report(declared, self.board, children)

    def _declare(self, found: FoundModule, before: "Plan | None", rehearsals: Rehearsals) -> None:
        """Ask a module for its children and migrations, and add them to `children`. A module that fails is left out."""
        if found.module is None:
            return
        lacking = next((name for name in found.module.requires if name not in {m.name for m in self.modules}), None)
        if lacking is not None:
            found.leave_out(f"it requires the module {lacking}, which is left out")
            return
        settings = self.sections[found.name]
        same = before.find_unchanged(found.module, settings) if before is not None else None
        if same is not None:
            found.children, found.migrations = same.children, same.migrations
        else:
            declare(found, settings, rehearsals)
        if found.module is None:
            return
        try:
            children = self._children_of(found, settings, before)
        except Exception as error:  # noqa: BLE001 - whatever it is, the arbiter goes on without this module
            found.leave_out(f"children: {error}")
        else:
            self.children += children

    def _children_of(self, found: FoundModule, settings: msgspec.Struct, before: "Plan | None") -> list[Child]:
        """Return what the supervisor runs for a module. Raises ValueError or TypeError for what it cannot run."""
        assert found.module is not None
        children = []
        board = None
        if found.migrations:
            is_unchanged = before is not None and before.sections.get(found.name) == settings
            board = before.migrations.get(found.name) if before is not None and is_unchanged else None
            board = board or Board([found.name], 1)
            self.migrations[found.name] = board
            migrate = partial(_migrate, found.module, found.migrations, settings, board)
            children.append(
                Child(
                    f"{found.name}-{MIGRATIONS}",
                    migrate,
                    silence_seconds=MIGRATION_SECONDS_MAX,
                    memory_size_max=MIGRATION_SIZE_MAX,
                    once=True,
                    settings=settings,
                )
            )
        for child in found.children:
            run = partial(_run, found.module, child, settings, board)
            name = f"{found.name}-{child.name}"
            if len(name) > NAME_SIZE_MAX:
                length_max = NAME_SIZE_MAX - len(f"{found.name}-")
                raise ValueError(
                    f"the child {child.name!r}: expected a name of at most {length_max} characters, "
                    f"because {found.name}-<name> has at most {NAME_SIZE_MAX}"
                )
            children.append(
                Child(
                    name,
                    run,
                    child.access,
                    child.silence_seconds,
                    child.start_seconds,
                    child.memory_size_max,
                    settings=settings,
                )
            )
        names = [child.name for child in (*self.children, *children)]
        if len(set(names)) < len(names):
            raise ValueError("two children have the same name")
        if len(names) > MODULE_CHILDREN_MAX:
            raise ValueError(f"all modules together declare more than {MODULE_CHILDREN_MAX} children")
        return children


def _migrate(
    module: Module, migrations: Sequence[Migration], settings: msgspec.Struct, board: Board, child: ChildContext
) -> int:
    """Run a module's migrations, in a process of their own; return the exit status."""
    measure_into_files_of(child.name)
    context = make_context(module, MIGRATIONS, settings, child.config)
    cell = Cell(*identify_self(), "configured", time.time())
    for migration in migrations:
        child.beat()
        began = time.monotonic()
        try:
            migration.apply(context)
        except Exception as error:
            log.exception("migration %s of module %s failed", migration.name, module.name)
            reason = f"{migration.name}: {type(error).__name__}: {error}"
            board.write(module.name, 0, msgspec.structs.replace(cell, state="failed", reason=reason))
            return 1
        log.info(
            "migration %s of module %s took %.1f ms", migration.name, module.name, (time.monotonic() - began) * 1e3
        )
    board.write(module.name, 0, msgspec.structs.replace(cell, state="ready", since=time.time()))
    return 0


def _run(
    module: Module, declared: ModuleChild, settings: msgspec.Struct, migrations: Board | None, child: ChildContext
) -> int:
    """Run a module's child, once its migrations are done; return the exit status."""
    while migrations is not None and not _are_done(migrations, module.name):
        if child.wait(_WAIT_SECONDS):
            return 0
    measure_into_files_of(child.name)
    context = make_context(module, declared.name, settings, child.config)
    child.begin_start()  # the wait for the migrations does not count as part of the start
    module.open(context)
    child.beat()
    try:
        return declared.run(context, child)
    finally:
        module.close()


def _are_done(migrations: Board, name: str) -> bool:
    cell = migrations.read(name, 0)
    return cell is not None and cell.state == "ready"
