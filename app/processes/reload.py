"""A reload (SIGHUP) in two steps: the new workers boot beside the old ones, which end only when all new ones serve.

Gunicorn tells the old workers to end as soon as it has forked the new ones. If these cannot boot, because a certificate
does not match its key or a file system is full, nobody serves. So a reload is

1. prepared: the configuration is read and judged. If it is refused, nothing has changed.
2. tried: as many new workers as configured are forked, and boot.
3. put into force when all of them have booted; only then do the old ones get SIGTERM.
   Or taken back when one of them has died, or has not booted in time: the new ones end, the old ones stay.

The arbiter reaps workers and watches children meanwhile. A signal that stops the server ends the wait for new workers
and Gunicorn's for old ones.

Invariants: no exception leaves a reload; it would end the arbiter, and every memory with it. Whatever fails before step
3, such as writing Gunicorn's pid on a full file system, takes the reload back.
"""

import logging
import queue
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from app.processes.arbiter_record import ReloadResult

BOOT_SECONDS_MAX: Final = 30.0  # for all new workers together, which boot side by side in tenths of a second
POLL_SECONDS: Final = 0.01
_STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

log = logging.getLogger("mlsdm.server")


class ReloadRefused(Exception):
    """A reload does not come into force. The reason has been logged."""

    def __init__(self, result: ReloadResult) -> None:
        super().__init__(result)
        self.result = result


class _Stopping(Exception):
    """The arbiter has been told to end. The signal is still in its queue."""


class Application(Protocol):
    """What is used of Gunicorn's application."""

    cfg: Any
    reload: Callable[[], None]


class Arbiter(Protocol):
    """What is used of Gunicorn's arbiter."""

    WORKERS: Mapping[int, Any]
    SIG_QUEUE: "queue.SimpleQueue[int]"
    app: Any
    cfg: Any
    num_workers: int
    reload: Callable[[], None]
    setup: Callable[[Any], None]
    manage_workers: Callable[[], None]
    reap_workers: Callable[[], None]
    kill_worker: Callable[[int, int], None]


class Configuration(Protocol):
    """What a reload puts into force or takes back."""

    @property
    def was_refused(self) -> bool:
        """Whether the last attempt to read the configuration has kept the old one."""

    def commit(self) -> bool:
        """Put what was read into force. Return False when that failed for a part of it, which has been logged."""

    def roll_back(self) -> None:
        """Go back to what was in force before it was read."""


def reload_in_two_steps(
    arbiter: Arbiter, configuration: Configuration, on_result: Callable[[ReloadResult], None]
) -> None:
    """Have SIGHUP replace the workers only by workers that serve.

    `on_result` is called once for each reload, unless the server is told to stop before it is in force.
    """
    reload, manage, reap = arbiter.reload, arbiter.manage_workers, arbiter.reap_workers
    old: frozenset[int] | None = None  # the workers from before the reload that is in progress
    is_in_force = False  # whether step 3 of that reload has been reached

    def reload_or_keep() -> None:
        nonlocal old, is_in_force
        old, is_in_force, cfg = frozenset(arbiter.WORKERS), False, arbiter.app.cfg
        try:
            reload()
        except ReloadRefused as refused:
            take_back(old, cfg)
            on_result(refused.result)
        except _Stopping:
            if not is_in_force:
                log.warning("configuration not reloaded: the server is told to stop")
                take_back(old, cfg)
        except Exception:
            if is_in_force:
                log.exception("a step of the reload has failed; the new configuration is in force")
            else:
                log.exception("configuration not reloaded, the old one and the old workers stay")
                take_back(old, cfg)
                on_result(ReloadResult.FAILED)
        finally:
            old = None

    def take_back(old: frozenset[int], cfg: Any) -> None:
        _end_new_workers(arbiter, old)
        configuration.roll_back()
        arbiter.app.cfg = cfg
        if arbiter.cfg is not cfg:  # it was tried
            arbiter.setup(arbiter.app)

    def boot_and_manage() -> None:
        nonlocal is_in_force
        if old is not None:
            _wait_until_booted(arbiter, old)
            is_in_force, is_complete = True, False
            try:
                is_complete = configuration.commit()
            finally:
                on_result(ReloadResult.SUCCEEDED if is_complete else ReloadResult.INCOMPLETE)
        manage()

    def reap_until_stop() -> None:
        reap()
        if old is not None and _is_told_to_stop(arbiter):
            raise _Stopping

    arbiter.reload, arbiter.manage_workers, arbiter.reap_workers = reload_or_keep, boot_and_manage, reap_until_stop
    _refuse_unreadable(arbiter.app, configuration)


def _refuse_unreadable(application: Application, configuration: Configuration) -> None:
    """Refuse a reload when gunicorn.conf.py cannot be read, or holds a configuration that is refused.

    Gunicorn exits in the first case, for want of descriptors or because the file is broken. It has thrown its settings
    away by then.
    """
    reload = application.reload

    def reload_or_refuse() -> None:
        try:
            reload()
        except (Exception, SystemExit) as error:
            log.error("configuration not reloaded, the old one stays: %s", error.__context__ or error)
            raise ReloadRefused(ReloadResult.REFUSED) from error
        if configuration.was_refused:
            raise ReloadRefused(ReloadResult.REFUSED)

    application.reload = reload_or_refuse


def _wait_until_booted(arbiter: Arbiter, old: frozenset[int]) -> None:
    """Wait until all workers that are not in `old` have booted. Raises ReloadRefused when they do not."""
    new, deadline = arbiter.WORKERS.keys() - old, time.monotonic() + BOOT_SECONDS_MAX
    wanted = max(arbiter.num_workers, len(new))
    while True:
        alive = {pid: worker for pid, worker in arbiter.WORKERS.items() if pid in new}
        booted = {pid for pid, worker in alive.items() if worker.has_booted}
        if len(booted) == wanted:
            return
        if len(alive) < wanted or time.monotonic() >= deadline:  # one was not forked, or has ended
            break
        time.sleep(POLL_SECONDS)
        arbiter.reap_workers()
    log.error(
        "configuration not reloaded, the old one and the old workers stay: %d of %d new workers did not start",
        wanted - len(booted), wanted,
    )  # fmt: skip
    raise ReloadRefused(ReloadResult.NOT_BOOTED)


def _end_new_workers(arbiter: Arbiter, old: frozenset[int]) -> None:
    """End all workers that are not in `old`: at once, unless they serve already."""
    for pid, worker in [*arbiter.WORKERS.items()]:
        if pid not in old:
            worker.age = 0  # Gunicorn ends the oldest of too many: while these end, none of the others
            arbiter.kill_worker(pid, signal.SIGTERM if worker.has_booted else signal.SIGKILL)


def _is_told_to_stop(arbiter: Arbiter) -> bool:
    """Return whether a signal that stops the server waits in the arbiter's queue. All signals stay there."""
    waiting = []
    with suppress(queue.Empty):
        while True:
            waiting.append(arbiter.SIG_QUEUE.get_nowait())
    for number in waiting:
        arbiter.SIG_QUEUE.put(number)
    return not _STOP_SIGNALS.isdisjoint(waiting)
