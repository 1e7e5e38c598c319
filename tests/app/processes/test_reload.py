"""A reload in two steps, with an arbiter that the test plays.

With real servers: tests/loadtests/faults/test_reload.py.
"""

import logging
import queue
import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.processes import reload
from app.processes.arbiter_record import ReloadResult
from app.processes.reload import Arbiter, reload_in_two_steps

OLD, ELDER, NEW, SECOND = 11, 10, 21, 22
TURNS_MAX = 10  # of the wait for old workers


class Settings:
    """What is put into force or taken back, and the result of the reload, as a list of steps."""

    def __init__(self, was_refused: bool = False) -> None:
        self.was_refused = was_refused
        self.is_complete = True  # whether every part of it can be put into force
        self.steps: list[str] = []

    def commit(self) -> bool:
        """Note it."""
        self.steps.append("commit")
        return self.is_complete

    def roll_back(self) -> None:
        """Note it."""
        self.steps.append("roll back")

    def note(self, result: ReloadResult) -> None:
        """Note what became of the reload."""
        self.steps.append(result.name.lower())


class PlayedArbiter(SimpleNamespace):
    """An arbiter whose new workers do what `boot` says when it reaps."""

    def __init__(self, settings: Settings, forked: tuple[int, ...] = (NEW, SECOND)) -> None:
        workers = {ELDER: worker(10, has_booted=True), OLD: worker(11, has_booted=True)}
        super().__init__(WORKERS=workers, num_workers=2, cfg="old", killed={})
        self.app = SimpleNamespace(cfg="old", reload=self._read)
        self.SIG_QUEUE: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.write_pid: Callable[[], None] = lambda: None
        self.boot: Callable[[], None] = lambda: None
        self._forked = forked
        reload_in_two_steps(cast(Arbiter, self), settings, settings.note)

    def _read(self) -> None:
        self.app.cfg = "new"

    def setup(self, app: Any) -> None:
        """Take the settings over."""
        self.cfg = app.cfg

    def reload(self) -> None:
        """Do what Gunicorn does at SIGHUP."""
        self.app.reload()
        self.setup(self.app)
        self.write_pid()
        for pid in self._forked:
            self.WORKERS[pid] = worker(pid, has_booted=False)
        self.manage_workers()
        for _ in range(TURNS_MAX):  # Gunicorn does so for the graceful timeout
            if self.killed.keys() & self.WORKERS.keys():
                self.reap_workers()

    def manage_workers(self) -> None:
        """End the oldest of too many workers."""
        by_age = sorted(self.WORKERS, key=lambda pid: self.WORKERS[pid].age)
        for pid in by_age[: -self.num_workers]:
            self.killed.setdefault(pid, signal.SIGTERM)

    def kill_worker(self, pid: int, number: int) -> None:
        """Note the signal."""
        self.killed[pid] = number

    def reap_workers(self) -> None:
        """Let the new workers do something."""
        self.boot()


def worker(age: int, has_booted: bool) -> SimpleNamespace:
    return SimpleNamespace(age=age, has_booted=has_booted)


def test_old_workers_end_when_all_new_ones_have_booted() -> None:
    """Not when the first has; what was read comes into force before that."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)
    booting = [NEW, SECOND]

    def boot() -> None:
        if booting:
            assert (arbiter.killed, settings.steps) == ({}, [])
            arbiter.WORKERS[booting.pop(0)].has_booted = True
        else:
            del arbiter.WORKERS[min(arbiter.WORKERS)]  # an old one has ended

    arbiter.boot = boot
    arbiter.reload()

    ended = dict.fromkeys((ELDER, OLD), signal.SIGTERM)
    assert (arbiter.killed, settings.steps, arbiter.cfg) == (ended, ["commit", "succeeded"], "new")


def test_a_reload_without_the_governors_settings_is_incomplete() -> None:
    """The rest of it is in force."""
    settings = Settings()
    settings.is_complete = False
    arbiter = PlayedArbiter(settings, forked=())
    arbiter.num_workers = 0

    arbiter.reload()

    assert (settings.steps, arbiter.cfg) == (["commit", "incomplete"], "new")


def test_new_workers_end_when_one_of_them_cannot_boot(caplog: pytest.LogCaptureFixture) -> None:
    """One serves already and may finish its requests; no old one ends meanwhile, and one ERROR says what happened."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)

    def boot() -> None:
        del arbiter.WORKERS[SECOND]
        arbiter.WORKERS[NEW].has_booted = True

    arbiter.boot = boot
    with caplog.at_level(logging.ERROR):
        arbiter.reload()
    arbiter.manage_workers()

    assert (arbiter.killed, settings.steps, arbiter.cfg) == ({NEW: signal.SIGTERM}, ["roll back", "not_booted"], "old")
    assert [record.getMessage() for record in caplog.records] == [
        "configuration not reloaded, the old one and the old workers stay: 1 of 2 new workers did not start"
    ]


def test_new_workers_that_hang_are_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """They have time to boot, and no more."""
    monkeypatch.setattr(reload, "BOOT_SECONDS_MAX", 0.05)
    settings = Settings()
    arbiter = PlayedArbiter(settings)

    arbiter.reload()

    assert arbiter.killed == {NEW: signal.SIGKILL, SECOND: signal.SIGKILL}
    assert (settings.steps, arbiter.cfg) == (["roll back", "not_booted"], "old")
    assert "2 of 2 new workers did not start" in caplog.text


def test_fewer_new_workers_than_configured(caplog: pytest.LogCaptureFixture) -> None:
    """One could not be forked: the other ends at once."""
    settings = Settings()
    arbiter = PlayedArbiter(settings, forked=(NEW,))

    arbiter.reload()

    assert (arbiter.killed, settings.steps) == ({NEW: signal.SIGKILL}, ["roll back", "not_booted"])
    assert "2 of 2 new workers did not start" in caplog.text


def test_workers_are_managed_as_before_after_a_reload() -> None:
    """A refused reload leaves nothing behind that waits."""
    arbiter = PlayedArbiter(Settings(was_refused=True))
    arbiter.reload()
    assert arbiter.killed == {}

    arbiter.num_workers = 1
    arbiter.manage_workers()

    assert arbiter.killed == {ELDER: signal.SIGTERM}


def test_a_refused_configuration_replaces_nobody() -> None:
    """No new worker is forked."""
    settings = Settings(was_refused=True)
    arbiter = PlayedArbiter(settings)

    arbiter.reload()

    assert (list(arbiter.WORKERS), settings.steps, arbiter.app.cfg) == ([ELDER, OLD], ["roll back", "refused"], "old")


def test_a_broken_file_replaces_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Gunicorn exits when gunicorn.conf.py cannot be read again, and has forgotten its settings by then."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)

    def broken() -> None:
        arbiter.app.cfg = "none"
        try:
            raise ValueError("a syntax error")
        except ValueError:
            sys.exit(1)

    arbiter.app.reload = broken
    reload._refuse_unreadable(arbiter.app, settings)
    arbiter.reload()

    assert (list(arbiter.WORKERS), settings.steps, arbiter.app.cfg) == ([ELDER, OLD], ["roll back", "refused"], "old")
    assert "configuration not reloaded, the old one stays: a syntax error" in caplog.text


def test_a_step_that_fails_replaces_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Gunicorn writes its pid before it forks; an exception would end the arbiter, and every memory with it."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)

    def write_pid() -> None:
        raise OSError("No space left on device")

    arbiter.write_pid = write_pid
    arbiter.reload()

    assert (list(arbiter.WORKERS), settings.steps, arbiter.cfg) == ([ELDER, OLD], ["roll back", "failed"], "old")
    assert "configuration not reloaded, the old one and the old workers stay" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_step_that_fails_later_takes_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    """The new workers serve, and the new settings are in force."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)
    booting = [NEW, SECOND]

    def boot() -> None:
        if not booting:
            raise OSError("no descriptors")
        arbiter.WORKERS[booting.pop(0)].has_booted = True

    arbiter.boot = boot
    arbiter.reload()

    assert (settings.steps, arbiter.cfg) == (["commit", "succeeded"], "new")
    assert arbiter.killed == dict.fromkeys((ELDER, OLD), signal.SIGTERM)
    assert "no descriptors" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_does_not_wait_until_new_workers_have_booted(number: signal.Signals) -> None:
    """The reload is taken back. All signals stay in the queue, for the arbiter's loop."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)

    def boot() -> None:
        arbiter.WORKERS[NEW].has_booted = True
        for queued in (signal.SIGCHLD, number, signal.SIGCHLD):
            arbiter.SIG_QUEUE.put(queued)

    arbiter.boot = boot
    arbiter.reload()

    assert arbiter.killed == {NEW: signal.SIGTERM, SECOND: signal.SIGKILL}
    assert (settings.steps, arbiter.cfg) == (["roll back"], "old")
    queued = [arbiter.SIG_QUEUE.get_nowait() for _ in range(arbiter.SIG_QUEUE.qsize())]
    assert queued == [signal.SIGCHLD, number, signal.SIGCHLD]


def test_a_stop_does_not_wait_until_old_workers_have_ended() -> None:
    """They would have the graceful timeout twice. What is in force stays in force."""
    settings = Settings()
    arbiter = PlayedArbiter(settings)
    booting = [NEW, SECOND]

    def boot() -> None:
        if booting:
            arbiter.WORKERS[booting.pop(0)].has_booted = True
        else:
            arbiter.SIG_QUEUE.put(signal.SIGTERM)

    arbiter.boot = boot
    arbiter.reload()

    assert (settings.steps, arbiter.cfg, arbiter.SIG_QUEUE.qsize()) == (["commit", "succeeded"], "new", 1)
    assert arbiter.killed == dict.fromkeys((ELDER, OLD), signal.SIGTERM)
