"""One supervised child: starts its process, checks its heartbeat and memory, ends it.

States: absent (to be started at `due`), running, ending (told by SIGTERM, killed at its deadline).

Invariants: no method waits. Each does one step and returns, because the arbiter's loop must go on.
"""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from app.processes.child import Child
from app.processes.child_table import ChildRecord, Reason
from app.processes.heartbeat import Heartbeat
from app.processes.respawn import Respawn
from app.processes.silence import Silence
from shm import process
from shm.process import NOBODY, Identity

MEMORY_CHECK_SECONDS: Final = 1.0

log = logging.getLogger("mlsdm.server")


class SupervisedChild:
    """Supervises one child. It is killed when it has not ended `end_seconds` after SIGTERM."""

    def __init__(
        self,
        child: Child,
        record: ChildRecord,
        respawn: Respawn,
        heartbeat: Heartbeat,
        end_seconds: float,
    ) -> None:
        self.child = child
        self.record = record
        self.process = NOBODY
        self.due = 0.0  # while it is absent: when it may be started
        self.is_finished = False  # declared to run once, and has exited with status 0
        self.is_removed = False  # no longer declared; its record is freed when it has ended
        self._respawn = respawn
        self._heartbeat = heartbeat
        self._end_seconds = end_seconds
        self._killed_for = Reason.NONE  # why this arbiter has told the process to end, or killed it
        self._kill_at: float | None = None  # when a process that was told to end is killed
        self._silence = Silence()
        self._memory_checked_at = 0.0

    @property
    def name(self) -> str:
        """The name of the child."""
        return self.child.name

    @property
    def may_start(self) -> bool:
        """Whether an absent child is started when it is due."""
        return not (self.is_finished or self.is_removed)

    @property
    def wake_at(self) -> float | None:
        """When it must be checked or started at the latest, also without a signal; None when never."""
        if self.process == NOBODY:
            return self.due if self.may_start else None
        return self._silence.next_check(self._limit) if self._kill_at is None else self._kill_at

    @property
    def _limit(self) -> float:
        """How long it may be without a heartbeat, in seconds."""
        return self.child.silence_seconds if self._heartbeat.has_started else self.child.start_seconds

    def start(self, now: float, fork: Callable[[Child, ChildRecord], int]) -> None:
        """Start its process. When the fork fails, it is due again later."""
        self._respawn.started(now)
        self._heartbeat.begin_start()
        try:
            pid = fork(self.child, self.record)
        except OSError as error:
            log.error("cannot start a %s: %s", self.name, error)
            self.record.ended(Reason.NOT_STARTED, 0)
            self.due = self._respawn.next_start(now)
            return
        self.process = Identity(pid, process.identify(pid).started)
        self.record.started(pid)
        self._killed_for, self._kill_at = Reason.NONE, None
        self._silence.restart(now, self._heartbeat.beats)
        self._memory_checked_at = now

    def reap(self, now: float) -> tuple[int, Reason, int | None] | None:
        """Return (pid, reason, wait status) when the process has ended, else None.

        The wait status is None when Gunicorn has reaped the process first.
        """
        if self.process == NOBODY:
            return None
        pid, status = self.process.pid, None
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == 0:
                return None
        except ChildProcessError:
            status = None
        exit_status = 0 if status is None else os.waitstatus_to_exitcode(status)
        reason = self._killed_for or (Reason.KILLED if exit_status < 0 else Reason.EXITED)
        if self.child.once and exit_status == 0 and status is not None and reason is Reason.EXITED:
            reason = Reason.FINISHED
        self.record.ended(reason, exit_status)
        self.process, self._kill_at = NOBODY, None
        self.due = self._respawn.next_start(now)
        return pid, reason, status

    def check(self, now: float) -> None:
        """Kill a running child that is silent, too large or too slow to start, and an ending one that is late."""
        if not self.process.started:  # unknown: at the fork there was no free descriptor to read /proc with
            self.process = Identity(self.process.pid, process.identify(self.process.pid).started)
        if self._kill_at is not None:
            self.kill_if_late(now)
        elif self._silence.is_over(self._limit, now, self._heartbeat.beats):
            if self._heartbeat.has_started:
                log.error("%s pid=%d is silent and is killed", self.name, self.process.pid)
                self._kill(now, Reason.SILENT)
            else:
                log.error(
                    "%s pid=%d has not started within %g s and is killed",
                    self.name, self.process.pid, self.child.start_seconds,
                )  # fmt: skip
                self._kill(now, Reason.SLOW_START)
        elif self.child.memory_size_max and now - self._memory_checked_at >= MEMORY_CHECK_SECONDS:
            self._memory_checked_at = now
            size = _anonymous_size(self.process.pid)
            if size > self.child.memory_size_max:
                log.error(
                    "%s pid=%d uses %.0f MB of anonymous memory, its limit is %.0f MB, and is killed",
                    self.name, self.process.pid, size / 1e6, self.child.memory_size_max / 1e6,
                )  # fmt: skip
                self._kill(now, Reason.MEMORY)

    def _kill(self, now: float, reason: Reason) -> None:
        self._killed_for = reason
        process.kill(self.process)
        self._silence.restart(now, self._heartbeat.beats)  # then once more: the kill fails without a free descriptor

    def end(self, now: float, reason: Reason) -> None:
        """Send SIGTERM; `kill_if_late` kills it after `end_seconds`, and `reap` notices that it has ended."""
        if self.process == NOBODY or self._kill_at is not None:
            return
        self._killed_for, self._kill_at = reason, now + self._end_seconds
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)

    def kill_if_late(self, now: float) -> None:
        """Kill a child that was told to end and has not ended in time."""
        if self._kill_at is not None and now >= self._kill_at:
            log.error("%s pid=%d does not end and is killed", self.name, self.process.pid)
            process.kill(self.process)
            self._kill_at = now + self._end_seconds  # then once more: the kill fails without a free descriptor


def _anonymous_size(pid: int) -> int:
    """Return the bytes of anonymous memory of a process, 0 when they cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(b"RssAnon:")), 0)
    except OSError:
        return 0
