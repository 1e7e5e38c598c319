"""The supervisor of the arbiter's children: starts, respawns and ends them. The controller is the first of them.

Gunicorn does not know these children, and would reap them without telling anybody. So the arbiter calls `reap` before
its own reaping, and `watch` at least once a second in its main loop (app/processes/gunicorn_patches.py).

- The controller is respawned on SIGCHLD, within milliseconds, and killed after 1.5 s of silence. When it exits
  because the controller of a newer arbiter has taken over (SUPERSEDED), no child is respawned while that arbiter lives.
- Other children are respawned at once after the first death, then with a back-off. They are killed when they are
  silent, too slow to start, or too large. At a reload, a child whose settings have changed is told to end; its
  successor starts when it has ended.

Invariants: nothing raises into the arbiter's loop, which would end the server and with it every memory; what fails now
is tried again by the next `watch`. Only `spawn` and `end` block.

The design is in docs/design/children.md.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from app.processes.child import CONTROLLER, SIGNALS, Child, Inheritance, become
from app.processes.child_table import CHILDREN_MAX, ChildRecord, ChildState, ChildTable, Reason
from app.processes.heartbeat import VitalsHeartbeat
from app.processes.respawn import Backoff, BurstLimit
from app.processes.supervised_child import SupervisedChild
from core.controller.controller import SUPERSEDED
from core.settings.config import Config
from shm import process
from shm.block import Block
from shm.errors import StoreError
from shm.process import NOBODY, Identity
from shm.store import Store

END_SECONDS_MAX: Final = 3.0  # from SIGTERM to SIGKILL
CONTROLLER_END_SECONDS_MAX: Final = 1.0
# How long a newer controller may take from its first epoch to its first vitals, which name its arbiter.
SIGNING_SECONDS: Final = 5.0
FORM_SECONDS_MAX: Final = 5.0  # for the first controller to write the initial state

log = logging.getLogger("mlsdm.server")


class Supervisor:
    """Supervises the children of one arbiter. `children` are all of them, the controller first.

    `config` returns the configuration in force. `release` is called in each child and closes what only the arbiter may
    hold. `on_taken_back` is called when this arbiter supervises the controller again, because a newer arbiter has gone.
    Raises ValueError when two children have the same name, or when there are too many.
    """

    def __init__(
        self,
        block: Block,
        children: Sequence[Child],
        config: Callable[[], Config],
        release: Callable[[], None],
        on_taken_back: Callable[[], object],
    ) -> None:
        self._block = block
        self._config = config
        self._release = release
        self._on_taken_back = on_taken_back
        self._identity = process.identify_self()  # now: later there may be no free file descriptor to look it up with
        self._table = ChildTable()
        self._supervised = {name: self._supervise(child) for name, child in _by_name(children).items()}
        self._waiting: list[Child] = []  # for a record, until children that are no longer declared have ended
        self.superseded = False
        self._superseded_at = 0.0

    def _supervise(self, child: Child) -> SupervisedChild:
        record = self._table.claim(child.name)
        if child.name != CONTROLLER:
            return SupervisedChild(child, record, Backoff(), record, END_SECONDS_MAX)
        return SupervisedChild(child, record, BurstLimit(), VitalsHeartbeat(self._block), CONTROLLER_END_SECONDS_MAX)

    def spawn(self) -> bool:
        """Start the controller and, once it has written the initial state, all other children.

        Returns False when it has not written the state within FORM_SECONDS_MAX.
        """
        self._start(self._controller)
        if not self.wait_until_formed():
            return False
        for supervised in self._supervised.values():
            if supervised.process == NOBODY:
                self._start(supervised)
        return True

    @property
    def _controller(self) -> SupervisedChild:
        return self._supervised[CONTROLLER]

    def _start(self, supervised: SupervisedChild) -> None:
        supervised.start(time.monotonic(), self._fork)

    def _fork(self, child: Child, record: ChildRecord) -> int:
        """Fork a child; returns its pid. Raises OSError when the fork fails."""
        inherited = Inheritance(self._block, self._config(), self._identity, self._release)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                become(child, record, inherited)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait_until_formed(self) -> bool:
        """Wait until the controller has written the initial state; return False after FORM_SECONDS_MAX."""
        store, deadline = Store(self._block), time.monotonic() + FORM_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                store.state()
            except StoreError:
                time.sleep(0.002)
            else:
                return True
        return False

    # -- called from the arbiter's loop: nothing may raise -----------------------------------------------------------

    def reap(self, respawn: bool) -> None:
        """Notice which children have ended; if `respawn`, start those again that should run."""
        for supervised in list(self._supervised.values()):
            _guarded(lambda supervised=supervised: self._reap(supervised, respawn))  # type: ignore[misc] # mypy infers no default

    def _reap(self, supervised: SupervisedChild, respawn: bool) -> None:
        now = time.monotonic()
        supervised.kill_if_late(now)
        ended = supervised.reap(now)
        if ended is None:
            return
        pid, reason, status = ended
        if supervised.is_removed:
            self._forget(supervised)
        elif not respawn:
            return
        elif supervised is self._controller and self._was_superseded(status):
            self._stand_back(now)
        elif reason is Reason.FINISHED:
            supervised.is_finished = True
            log.info("%s pid=%d has finished", supervised.name, pid)
        else:
            if reason in (Reason.REPLACED, Reason.SUPERSEDED):
                supervised.due = now
            else:
                log.warning("%s pid=%d died (status %d) and is respawned", supervised.name, pid, status or 0)
            if now >= supervised.due and not self.superseded:
                self._start(supervised)

    def watch(self) -> None:
        """Check every child: start what is due, kill what is silent, too large, or late to end."""
        if self.superseded:
            _guarded(self._take_back)
        while self._waiting and not self._table.is_full:
            child = self._waiting.pop(0)
            self._supervised[child.name] = self._supervise(child)
        for supervised in list(self._supervised.values()):
            _guarded(lambda supervised=supervised: self._watch(supervised))  # type: ignore[misc] # mypy infers no default

    def _watch(self, supervised: SupervisedChild) -> None:
        now = time.monotonic()
        if supervised.process != NOBODY:
            supervised.check(now)
        elif supervised.may_start and now >= supervised.due and not self.superseded:
            self._start(supervised)

    def seconds_to_next_check(self) -> float:
        """Return in how many seconds some child has to be checked, started after its back-off, or killed."""
        times = [
            supervised.wake_at
            for supervised in self._supervised.values()
            if supervised.process != NOBODY or not self.superseded
        ]
        return max(0.0, min((at for at in times if at is not None), default=float("inf")) - time.monotonic())

    # -- an upgrade: two arbiters agree on one controller ------------------------------------------------------------

    def _was_superseded(self, status: int | None) -> bool:
        """Return whether a controller that ended with this wait status was superseded by a newer one.

        `status` is None when Gunicorn has reaped the controller; then the vitals show it.
        """
        if status is None:
            newer = self._arbiter_in_vitals()
            return newer not in (NOBODY, self._identity) and newer.alive
        return os.WIFEXITED(status) and os.WEXITSTATUS(status) == SUPERSEDED

    def _stand_back(self, now: float) -> None:
        """Leave the block to the newer arbiter: end the other children, too."""
        self.superseded, self._superseded_at = True, now
        log.info("the controller of a newer arbiter has taken over")
        for supervised in self._supervised.values():
            supervised.end(now, Reason.SUPERSEDED)

    def _take_back(self) -> None:
        """Start all children again when the newer arbiter has gone."""
        now, newer = time.monotonic(), self._arbiter_in_vitals()
        # While the vitals still name this arbiter, the newer controller may not have written its first ones yet.
        is_unsigned = newer == self._identity and now - self._superseded_at < SIGNING_SECONDS
        if is_unsigned or (newer.alive and newer != self._identity) or now < self._controller.due:
            return
        self.superseded = False
        for supervised in self._supervised.values():
            supervised.due = now
        self._start(self._controller)
        self._on_taken_back()

    def _arbiter_in_vitals(self) -> Identity:
        vitals = self._block.region("vitals")
        return Identity(int(vitals.arbiter_pid), int(vitals.arbiter_started))

    # -- reload and end ----------------------------------------------------------------------------------------------

    def reload(self, children: Sequence[Child]) -> None:
        """Supervise these children from now on.

        Replaces those whose settings or access differ, ends those that are gone, and starts those that are new. If
        the table has no room for both, the last of these wait until those that are gone have ended. Raises ValueError
        as the constructor does, and then changes nothing.
        """
        wanted, now = _by_name(children), time.monotonic()
        for name, supervised in list(self._supervised.items()):
            if name not in wanted:
                self._remove(supervised, now)
                continue
            child = wanted.pop(name)
            differs = (supervised.child.settings, supervised.child.access) != (child.settings, child.access)
            supervised.child = child
            if differs or supervised.is_removed:
                supervised.is_removed = supervised.is_finished = False
                supervised.due = now
                supervised.end(now, Reason.REPLACED)
        self._waiting = list(wanted.values())
        self.watch()

    def _remove(self, supervised: SupervisedChild, now: float) -> None:
        supervised.is_removed = True
        supervised.end(now, Reason.ENDED)
        if supervised.process == NOBODY:
            self._forget(supervised)

    def _forget(self, supervised: SupervisedChild) -> None:
        supervised.record.release()
        del self._supervised[supervised.name]

    def end(self) -> None:
        """Tell all children to end, wait for all at the same time, and kill those that are late.

        The kernel kills any that is left when the arbiter exits (PR_SET_PDEATHSIG).
        """
        give_up_at = time.monotonic() + 2 * END_SECONDS_MAX
        for supervised in self._supervised.values():
            supervised.end(time.monotonic(), Reason.ENDED)
        while time.monotonic() < give_up_at:
            for supervised in self._supervised.values():
                supervised.kill_if_late(time.monotonic())
                supervised.reap(time.monotonic())
            if all(supervised.process == NOBODY for supervised in self._supervised.values()):
                return
            time.sleep(0.005)

    def states(self) -> dict[str, ChildState]:
        """Return the state of each child by its name. Any process that the arbiter has forked may ask."""
        return self._table.states()


def _by_name(children: Sequence[Child]) -> dict[str, Child]:
    """Return the children by name. Raises ValueError when two have the same name, or when there are too many."""
    by_name = {child.name: child for child in children}
    if len(by_name) != len(children):
        raise ValueError(f"children of the same name: {', '.join(sorted(child.name for child in children))}")
    if len(by_name) > CHILDREN_MAX:
        raise ValueError(f"{len(by_name)} children, expected at most {CHILDREN_MAX}")
    return by_name


def _guarded(step: Callable[[], None]) -> None:
    """Do one step for one child. An error is logged; the next `watch` tries again."""
    try:
        step()
    except Exception:
        log.exception("supervising a child failed; trying again")
