"""One module in one process, from its first method to its last, on a thread of its own.

Invariants: whatever the module raises, and however long it takes, stays on this thread. The module is opened when its
migrations are done and the modules that it requires are usable. A module in whose methods DEATHS_MAX processes died is
left out, so that it cannot keep the workers from serving.
Threading: `run` is the thread; `report_if_stuck` and `request_close` are called from the event loop's.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from app.api.access.gate import Authenticator
from app.api.operation import Resource
from app.lifecycle.contract import Module, ModuleContext
from app.lifecycle.report import USABLE, Board, Cell, State
from shm.process import identify_self

STUCK_SECONDS: Final = 30.0  # a method of a module that runs for longer is reported as stuck
CHECK_SECONDS: Final = 1.0
RETRY_SECONDS_MIN: Final = 1.0  # before `open` is called again; doubled each time
RETRY_SECONDS_MAX: Final = 60.0
DEATHS_MAX: Final = 3
DEATHS_FORGOTTEN_SECONDS: Final = 60.0  # the deaths of a module are forgotten when it has been usable for this long
_WAIT_SECONDS: Final = 0.02  # between two checks of what the module waits for

T = TypeVar("T")

log = logging.getLogger("mlsdm.modules")


class Published(NamedTuple):
    """What a module adds to the application of its worker."""

    module: str
    routes: Mapping[str, Resource]
    authenticators: Sequence[Authenticator]


class ModuleThread(threading.Thread):
    """The thread of one module. `settled` is set once waiting for it is over: ready, failed, stuck or closing."""

    def __init__(
        self,
        module: Module,
        board: Board,
        holder: int,
        *,
        migrations: Board | None,
        context_of: Callable[[Module], ModuleContext],
        is_usable: Callable[[str], bool],
        publish: Callable[[Published], None],
    ) -> None:
        """`holder` is this process's column of the board; `migrations` the board of the module's migrations, if any.

        `is_usable(name)` returns whether that module is usable in this process; `publish` adds what it is given to the
        application.
        """
        super().__init__(name=f"module {module.name}", daemon=True)
        self.module = module
        self.settled = threading.Event()
        self._migrations = migrations
        self._context_of = context_of
        self._board = board
        self._holder = holder
        self._is_usable = is_usable
        self._publish = publish
        self._closing = threading.Event()
        self._is_open = False
        self._has_failed = False  # outside its methods
        self._usable_since = 0.0  # on the monotonic clock
        self._running_since = 0.0  # on the monotonic clock; 0 while no method of the module runs
        self._writing = threading.Lock()
        before = board.read(module.name, holder)
        self._cell = Cell(*identify_self(), "configured", time.time(), deaths=_deaths(before) if before else 0)
        self._write()

    @property
    def is_usable(self) -> bool:
        """Whether the module's routes may be called."""
        return self._cell.state in USABLE

    @property
    def cell(self) -> Cell:
        """What this process reports of the module."""
        return self._cell

    @property
    def has_close(self) -> bool:
        """Whether the module has something to do when its process ends."""
        return type(self.module).close is not Module.close

    @property
    def may_take_time(self) -> bool:
        """Whether this thread may take a while to end when it is told to."""
        return self.is_alive() and (self.has_close or bool(self._running_since))

    def run(self) -> None:
        """Take the module through its phases. Never raises."""
        try:
            if self._wait_until_openable() and self._open():
                self._check_until_closing()
        except BaseException as error:
            log.exception("module %s failed", self.module.name)
            self._running_since = 0.0
            self._enter("failed", f"{self._cell.running}: {type(error).__name__}: {error}", running="")
        finally:
            self.settled.set()
        if self._is_open and self.has_close:
            self._closing.wait()
            self._close()

    def request_close(self) -> None:
        """Have the thread close the module. When the thread has ended already, there is nothing to close."""
        self._closing.set()
        if not self.is_alive() and self.is_usable:
            self._enter("closed")

    def fail(self, reason: str) -> None:
        """Report that the module cannot be used, for a reason that is found outside its methods."""
        self._has_failed = True
        self._enter("failed", reason)

    def leave_behind(self) -> None:
        """Note that this process exits normally: a method of the module that still runs is not the cause."""
        if self.is_alive():
            self._write(running="")

    def report_if_stuck(self, now: float) -> None:
        """Report the module as stuck when one of its methods has run for too long. `now` on the monotonic clock."""
        with self._writing:
            since, cell = self._running_since, self._cell
            if not since or now - since <= STUCK_SECONDS or cell.state == "stuck":
                return
            reason = f"{cell.running} has run for {STUCK_SECONDS:.0f} s"
            self._cell = msgspec.structs.replace(cell, state="stuck", reason=reason, since=time.time())
            self._board.write(self.module.name, self._holder, self._cell)
        log.error("module %s is stuck: %s", self.module.name, reason)

    # -- phases ------------------------------------------------------------------------------------------------------

    def _wait_until_openable(self) -> bool:
        """Wait for migrations and required modules. False when the module is left out, or the process ends."""
        others = (cell for holder, cell in self._board.cells(self.module.name) if holder != self._holder)
        deaths = self._cell.deaths + sum(map(_deaths, others))
        if deaths >= DEATHS_MAX:
            self._enter("failed", f"left out, because {DEATHS_MAX} processes or more died in its methods")
            return False
        deadline = time.monotonic() + STUCK_SECONDS
        while (reason := self._reason_to_wait()) and not self._closing.is_set():
            if reason != self._cell.reason:
                self._write(reason=reason)
            if time.monotonic() > deadline and self._cell.state != "stuck":
                self._enter("stuck", reason)
                self.settled.set()
            self._closing.wait(_WAIT_SECONDS)
        return not self._closing.is_set()

    def _reason_to_wait(self) -> str:
        """Return what this module waits for, "" for nothing."""
        if self._migrations is not None:
            cell = self._migrations.read(self.module.name, 0)
            if cell is None or cell.state != "ready":
                return "its migrations are not done" + (f": {cell.reason}" if cell and cell.reason else "")
        missing = (name for name in self.module.requires if not self._is_usable(name))
        return next((f"it requires the module {name}, which is not ready" for name in missing), "")

    def _open(self) -> bool:
        """Take the module from its first method to being ready. False when the process ends before."""
        name = self.module.name
        self._enter("opening")
        context = self._context_of(self.module)
        self._call("routes", lambda: self._publish(Published(name, self.module.routes(context), ())))
        if not self._open_until_it_succeeds(context):
            return False
        self._is_open = True
        self._call(
            "authenticators", lambda: self._publish(Published(name, {}, tuple(self.module.authenticators(context))))
        )
        self._usable_since = time.monotonic()
        self._enter("ready")
        log.info("module %s is ready", name, extra={"role": context.role})
        self.settled.set()
        return True

    def _open_until_it_succeeds(self, context: ModuleContext) -> bool:
        """Call `open`, and again with a back-off when it raises, because what it needs may be down.

        An error is logged when it differs from the one before. Returns False when the process ends.
        """
        delay = RETRY_SECONDS_MIN
        while True:
            try:
                self._call("open", lambda: self.module.open(context))
            except Exception as error:
                self._running_since = 0.0
                reason = f"open: {type(error).__name__}: {error}"
                if reason == self._cell.reason:
                    self._write(running="")
                else:
                    log.exception("module %s cannot be opened; it is tried again", self.module.name)
                    self._enter("failed", reason, running="")
                self.settled.set()
            else:
                return True
            if self._closing.wait(delay):
                return False
            delay = min(2 * delay, RETRY_SECONDS_MAX)

    def _check_until_closing(self) -> None:
        """Check the module, and reset its deaths in time. Returns at once if there is no check and no death."""
        has_check = type(self.module).check is not Module.check
        while (has_check or self._cell.deaths) and not self._closing.wait(CHECK_SECONDS):
            if self._cell.deaths and time.monotonic() - self._usable_since > DEATHS_FORGOTTEN_SECONDS:
                self._write(deaths=0)
            if has_check:
                self._check()

    def _check(self) -> None:
        try:
            wrong = self._call("check", self.module.check) or ""
        except Exception as error:
            log.exception("check of module %s failed", self.module.name)
            wrong = f"check: {type(error).__name__}: {error}"
            self._running_since = 0.0
        state: State = "degraded" if wrong else "ready"
        if (state, wrong) != (self._cell.state, self._cell.reason):
            self._enter(state, wrong, running="")

    def _close(self) -> None:
        try:
            self._call("close", self.module.close)
        except Exception:
            log.exception("module %s was not closed in order", self.module.name)
        self._enter("closed", running="")

    # -- the cell ----------------------------------------------------------------------------------------------------

    def _call(self, method: str, function: Callable[[], T]) -> T:
        """Call a method of the module. Its name is in the cell while it runs, its duration in ms afterwards."""
        began = self._running_since = time.monotonic()
        self._write(running=method)
        result = function()
        with self._writing:
            self._running_since = 0.0
        phases = {**self._cell.phases, method: round((time.monotonic() - began) * 1e3, 3)}
        self._write(running="", phases=phases)
        return result

    def _enter(self, state: State, reason: str = "", **members: Any) -> None:
        if self._has_failed and state in USABLE:
            return
        if reason:
            log.error("module %s is %s: %s", self.module.name, state, reason)
        elif self._cell.state in ("degraded", "stuck", "failed") and state == "ready":
            log.info("module %s has recovered", self.module.name)
        self._write(state=state, reason=reason, since=time.time(), **members)

    def _write(self, **members: Any) -> None:
        with self._writing:
            self._cell = msgspec.structs.replace(self._cell, **members)
            self._board.write(self.module.name, self._holder, self._cell)


def _deaths(cell: Cell) -> int:
    """Return how many processes of one holder died in a method of the module."""
    return cell.deaths + int(bool(cell.running) and not cell.writer.alive)
