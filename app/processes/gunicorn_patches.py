"""Every patch of Gunicorn's arbiter: where it has no hook, or would end and take every memory with it.

Owns: the replaced methods of one arbiter and of its application, and the clock of `gunicorn.arbiter`.

- Children: `reap_workers`, `murder_workers` and `wait_for_signals` also serve the supervised children
  (app/processes/supervisor.py).
- Exit statuses: Gunicorn ends the whole server when a worker exits with 3 or 4. Code of a module may do that at any
  time, so it ends the server only while no worker has ever served. Workers that die one after the other are started
  again with a back-off.
- Watch: workers that are stopped or stuck are replaced (app/processes/worker_watch.py).
- Spawn: a worker that has no row in the block is not started; a failed fork is logged; signals stay pending until the
  worker has its own handlers.
- Stop: the server announces its end for the drain period before Gunicorn closes anything.
- Reload: new workers boot before old ones end (app/processes/reload.py).
- Files: an arbiter that cannot open its log files again (USR1), or write its pid when it is promoted, goes on.
- Upgrade: Gunicorn exits when it cannot fork. A fork that cannot execute the new program would go on as a second copy
  of this arbiter and end its workers.
- Clock: Gunicorn waits for its last workers by the wall clock, and kills them in the middle of a request when the clock
  is set forwards.
"""

import logging
import os
import queue
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, Protocol

import gunicorn.arbiter  # type: ignore[import-untyped]  # gunicorn carries no types
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]

from app.processes.arbiter_record import ArbiterRecord
from app.processes.reload import Configuration, reload_in_two_steps
from app.processes.respawn import WorkerBackoff
from app.processes.worker_watch import WorkerWatch

CHECK_SECONDS_MIN: Final = 0.05  # the shortest wait of the loop, whatever is due

log = logging.getLogger("mlsdm.server")


class Arbiter(Protocol):
    """What is used of Gunicorn's arbiter."""

    is_stopping: bool  # set here; Gunicorn's own sign, no LISTENERS, always holds with --reuse-port
    LISTENERS: list[Any]
    WORKERS: Mapping[int, Any]
    SIGNALS: Sequence[signal.Signals]
    START_CTX: dict[Any, Any]
    SIG_QUEUE: "queue.SimpleQueue[int]"
    app: Any  # it reads gunicorn.conf.py
    cfg: Any
    log: Any
    systemd: bool
    num_workers: int
    timeout: float
    reexec_pid: int  # the next arbiter, 0 without an upgrade
    worker_class: Any
    reap_workers: Callable[[], None]
    murder_workers: Callable[[], None]
    wait_for_signals: Callable[..., list[int]]
    manage_workers: Callable[[], None]
    spawn_worker: Callable[[], int | None]
    spawn_workers: Callable[[], None]
    kill_worker: Callable[[int, int], None]
    setup: Callable[[Any], None]
    reload: Callable[[], None]
    stop: Callable[[bool], None]
    reexec: Callable[[], None]
    handle_usr1: Callable[[], None]
    maybe_promote_master: Callable[[], None]


class Children(Protocol):
    """What the arbiter's loop needs of the supervised children. No method may raise."""

    def reap(self, respawn: bool) -> None:
        """Notice which children have died; respawn them if `respawn`."""

    def watch(self) -> None:
        """Check all children and start what is due. To be called at least once a second."""

    def seconds_to_next_check(self) -> float:
        """Return in how many seconds `watch` should be called at the latest."""


def harden_arbiter(
    arbiter: Arbiter,
    children: Children,
    configuration: Configuration,
    *,
    rows: int,
    announce_stop: Callable[[], None],
    record: ArbiterRecord,
) -> None:
    """Install every patch.

    `rows` is how many workers may live at a time; `announce_stop` returns when the drain period is over; `record` gets
    the results of reloads and the workers that the watch has killed.
    """
    arbiter.is_stopping = False
    survive_worker_exits(arbiter)
    delay_respawns(arbiter)
    keep_causes(arbiter)
    watch_workers(arbiter, WorkerWatch(arbiter, record.worker_killed))
    serve_children(arbiter, children)
    bound_workers(arbiter, rows)
    announce_before_stop(arbiter, announce_stop)
    reload_in_two_steps(arbiter, configuration, record.reloaded)
    stay_at_upgrade(arbiter)
    survive_files(arbiter)
    gunicorn.arbiter.time = SimpleNamespace(time=time.monotonic, monotonic=time.monotonic, sleep=time.sleep)


def survive_worker_exits(arbiter: Arbiter) -> None:
    """Have no exit status of a worker end the arbiter once a worker has served, or once the server is stopping."""
    reap = arbiter.reap_workers

    def reap_all_workers() -> None:
        while True:
            workers = dict(arbiter.WORKERS)
            try:
                reap()
            except HaltServer as halt:  # raised in the middle: others may have ended, too
                if not arbiter.is_stopping and not arbiter.worker_class.booted_before():
                    raise
                for pid in workers.keys() - arbiter.WORKERS.keys():
                    workers[pid].tmp.close()  # Gunicorn has not closed that of the last one; twice is harmless
                if not arbiter.is_stopping:
                    log.error("a worker has exited with status %d; the server goes on", halt.exit_status)
            else:
                return

    arbiter.reap_workers = reap_all_workers


def delay_respawns(arbiter: Arbiter, clock: Callable[[], float] = time.monotonic) -> None:
    """Have the arbiter wait before it replaces workers that die one after the other. `clock` is in seconds.

    A reload starts its workers at once: an operator may have mended what kills them.
    """
    backoff = WorkerBackoff()
    reap, spawn = arbiter.reap_workers, arbiter.spawn_workers

    def reap_and_count() -> None:
        for pid in list(arbiter.WORKERS):
            if _has_died(pid):
                backoff.died(clock())
        reap()

    def spawn_when_due() -> None:
        if clock() >= backoff.due:
            spawn()

    def seconds_left() -> float:
        left = backoff.due - clock()
        return left if left > 0 else float("inf")

    arbiter.reap_workers, arbiter.spawn_workers = reap_and_count, spawn_when_due
    _wake_within(arbiter, seconds_left)


def _wake_within(arbiter: Arbiter, seconds: Callable[[], float]) -> None:
    """Have the arbiter's loop wait for signals no longer than `seconds()`, and at least CHECK_SECONDS_MIN."""
    wait = arbiter.wait_for_signals

    def wait_for_signals(timeout: float = 1.0) -> list[int]:
        return wait(timeout=min(timeout, max(seconds(), CHECK_SECONDS_MIN)))

    arbiter.wait_for_signals = wait_for_signals


def _has_died(pid: int) -> bool:
    """Return whether a child process has ended with an error or by a signal. It is left to be reaped."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return ended is not None and (ended.si_code != os.CLD_EXITED or ended.si_status != 0)


def serve_children(arbiter: Arbiter, children: Children) -> None:
    """Have the arbiter's loop reap and watch the supervised children, before Gunicorn reaps them as unknown."""
    reap, murder = arbiter.reap_workers, arbiter.murder_workers

    def reap_all() -> None:
        children.reap(respawn=not arbiter.is_stopping)
        reap()
        if not arbiter.is_stopping:
            children.watch()  # at a reload Gunicorn waits for the old workers in a loop that only reaps

    def watch_all() -> None:
        children.watch()
        murder()

    arbiter.reap_workers, arbiter.murder_workers = reap_all, watch_all
    _wake_within(arbiter, children.seconds_to_next_check)


def watch_workers(arbiter: Arbiter, watch: WorkerWatch) -> None:
    """Have the watch replace the arbiter's own check of its workers, even while a reload waits for old ones to end."""
    reap = arbiter.reap_workers

    def reap_and_watch() -> None:
        reap()
        if not arbiter.is_stopping:
            watch.check()

    arbiter.reap_workers, arbiter.murder_workers = reap_and_watch, watch.check
    _wake_within(arbiter, watch.seconds_to_next_check)


def keep_causes(arbiter: Arbiter) -> None:
    """Remove the cause that Gunicorn guesses from its log line about a worker that this arbiter has killed."""
    kill_worker = arbiter.kill_worker
    killed: set[int] = set()

    def kill_and_remember(pid: int, number: int) -> None:
        if number == signal.SIGKILL:
            killed.intersection_update(arbiter.WORKERS)  # those that have been reaped are forgotten
            killed.add(pid)
        kill_worker(pid, number)

    def correct_cause(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and record.args and record.args[0] in killed:
            record.msg = str(record.msg).removesuffix(" Perhaps out of memory?")
        return True

    arbiter.kill_worker = kill_and_remember
    logging.getLogger("gunicorn.error").addFilter(correct_cause)


def bound_workers(arbiter: Arbiter, rows: int) -> None:
    """Have the arbiter start no more workers than there are rows, and survive a fork that fails."""
    spawn = arbiter.spawn_worker

    def spawn_worker() -> int | None:
        if len(arbiter.WORKERS) >= rows:
            log.error("no worker is started: %d hold all rows of the block", len(arbiter.WORKERS))
            arbiter.num_workers = min(arbiter.num_workers, rows // 2)
            return None
        # A signal between the fork and the worker's own handlers would meet the arbiter's handlers, which only queue
        # it: it would be lost, and the arbiter would wait for that worker in vain. So it stays pending until the worker
        # unblocks it.
        signal.pthread_sigmask(signal.SIG_BLOCK, arbiter.SIGNALS)
        try:
            return spawn()
        except OSError as error:  # no descriptors, or no processes: the present workers go on, and it is tried again
            log.error("cannot start a worker: %s", error)
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, arbiter.SIGNALS)

    arbiter.spawn_worker = spawn_worker


def announce_before_stop(arbiter: Arbiter, announce_stop: Callable[[], None]) -> None:
    """Have the arbiter announce a graceful stop before it closes its listeners."""
    stop = arbiter.stop

    def stop_announced(graceful: bool = True) -> None:
        if graceful and not arbiter.is_stopping:
            announce_stop()
        arbiter.is_stopping = True
        stop(graceful)

    arbiter.stop = stop_announced


def stay_at_upgrade(arbiter: Arbiter) -> None:
    """Have an arbiter that cannot start the next one go on."""
    reexec = arbiter.reexec

    def reexec_or_stay() -> None:
        pid = os.getpid()
        try:
            reexec()
        except OSError as error:
            log.error("no new arbiter is started, the old one stays: %s", error)
            if os.getpid() != pid:  # the fork
                os._exit(1)

    arbiter.reexec = reexec_or_stay


def survive_files(arbiter: Arbiter) -> None:
    """Have no file that cannot be written end the arbiter: the directory may be gone, or its file system full."""
    reopen, promote = arbiter.handle_usr1, arbiter.maybe_promote_master

    def reopen_or_go_on() -> None:
        try:
            reopen()
        except Exception:
            log.exception("SIGUSR1: log files are not open")

    def promote_or_go_on() -> None:
        try:
            promote()
        except Exception:
            log.exception("this arbiter has been promoted, but cannot write its pid")

    arbiter.handle_usr1, arbiter.maybe_promote_master = reopen_or_go_on, promote_or_go_on
