"""The watch over workers that do not answer. It replaces Gunicorn's, which only counts 30 s by the clock.

- Silent: the event loop of a worker has not run for SILENCE_SECONDS. This is logged, and readiness fails (see
  app/routes/health.py).
- Stopped: by a signal (SIGSTOP, SIGTSTP), for STOPPED_SECONDS. The worker is killed and replaced, because its clients
  get no answers. A worker that a debugger has stopped is left alone.
- Stuck: it runs, and has been silent for Gunicorn's timeout. It gets SIGABRT, which writes a traceback, then SIGKILL.

Silence is counted in checks, not by the clock (app/processes/silence.py), so that healthy workers survive a time in
which the whole machine stood still.
"""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from app.processes.arbiter_record import KillReason
from app.processes.silence import Silence
from core.heartbeat import SILENCE_SECONDS
from shm import process

STOPPED_SECONDS: Final = 5.0

log = logging.getLogger("mlsdm.server")


class Arbiter(Protocol):
    """What is used of Gunicorn's arbiter. Its workers have `has_booted` and `tmp`, whose time each beat changes."""

    WORKERS: Mapping[int, Any]
    timeout: float
    kill_worker: Callable[[int, int], None]


@dataclass
class _Watched:
    silent: Silence = field(default_factory=Silence)
    stopped: Silence = field(default_factory=Silence)
    stuck: Silence = field(default_factory=Silence)
    is_logged: bool = False
    is_aborted: bool = False
    is_killed: bool = False  # it has got a signal, and the arbiter has not reaped it yet


class WorkerWatch:
    """Watches the workers of one arbiter.

    `on_kill` is called once for each worker that is killed; `clock` returns monotonic seconds.
    """

    def __init__(
        self, arbiter: Arbiter, on_kill: Callable[[KillReason], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._arbiter = arbiter
        self._on_kill = on_kill
        self._clock = clock
        self._watched: dict[int, _Watched] = {}

    def check(self) -> None:
        """Check every worker once, and kill those that are stopped or stuck."""
        workers, now = dict(self._arbiter.WORKERS), self._clock()
        self._watched = {pid: self._watched.get(pid, _Watched()) for pid in workers}
        for pid, worker in workers.items():
            try:
                beat = int(1e9 * worker.tmp.last_update())
            except (OSError, ValueError):  # its file is closed
                continue
            self._check(pid, self._watched[pid], beat, now, worker.has_booted)

    def seconds_to_next_check(self) -> float:
        """Return in how many seconds `check` should be called at the latest."""
        dues = [watched.silent.next_check(SILENCE_SECONDS) for watched in self._watched.values()]
        return max(0.0, min(dues, default=float("inf")) - self._clock())

    def _check(self, pid: int, watched: _Watched, beat: int, now: float, has_booted: bool) -> None:
        # Every check must update all three, because each of them counts its own checks.
        is_silent = watched.silent.is_over(SILENCE_SECONDS, now, beat)
        is_long_silent = watched.stopped.is_over(STOPPED_SECONDS, now, beat)
        is_stuck = bool(self._arbiter.timeout) and watched.stuck.is_over(self._arbiter.timeout, now, beat)
        if not is_silent:
            watched.is_logged = watched.is_aborted = False
            return
        state = process.state_of(pid)
        if not watched.is_logged and has_booted:
            log.warning(
                "worker pid=%d has been silent for %.0f s (%s)", pid, SILENCE_SECONDS, _STATES.get(state, state)
            )
            watched.is_logged = True
        if is_long_silent and state == _STOPPED:
            log.error("worker pid=%d is stopped, and is killed and replaced", pid)
            self._kill(pid, watched, signal.SIGKILL, KillReason.STOPPED)
        elif is_stuck and state != _TRACED:
            if not watched.is_aborted:
                log.critical("worker pid=%d has been silent for %.0f s and is ended", pid, self._arbiter.timeout)
            self._kill(pid, watched, signal.SIGKILL if watched.is_aborted else signal.SIGABRT, KillReason.STUCK)
            watched.is_aborted = True

    def _kill(self, pid: int, watched: _Watched, with_signal: signal.Signals, reason: KillReason) -> None:
        if not watched.is_killed:
            watched.is_killed = True
            self._on_kill(reason)
        self._arbiter.kill_worker(pid, with_signal)


_STOPPED: Final = "T"
_TRACED: Final = "t"
_STATES: Final = {  # proc_pid_stat(5)
    "R": "running", "S": "waiting", "D": "waiting for a disk", _STOPPED: "stopped by a signal",
    _TRACED: "stopped by a debugger", "Z": "ended", "": "ended",
}  # fmt: skip
