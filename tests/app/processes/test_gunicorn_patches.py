"""The patches of Gunicorn's arbiter. With real servers: test_server.py, tests/loadtests/faults/test_reload.py."""

import errno
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter as GunicornArbiter  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]
from gunicorn.pidfile import Pidfile  # type: ignore[import-untyped]

from app.processes.gunicorn_patches import (
    CHECK_SECONDS_MIN,
    announce_before_stop,
    bound_workers,
    delay_respawns,
    keep_causes,
    serve_children,
    stay_at_upgrade,
    survive_files,
    survive_worker_exits,
)
from app.processes.respawn import BURST, DELAY_SECONDS_MIN, WORKER_CALM_SECONDS, WORKER_DELAY_SECONDS_MAX


class ChildrenRecorder:
    """Children that record what the arbiter's loop asks of them."""

    def __init__(self, next_check: float = 0.0) -> None:
        self.calls: list[str] = []
        self.next_check = next_check

    def reap(self, respawn: bool) -> None:
        """Record it."""
        self.calls.append(f"reap, respawn={respawn}")

    def watch(self) -> None:
        """Record it."""
        self.calls.append("watch")

    def seconds_to_next_check(self) -> float:
        """Return what the test asks for."""
        return self.next_check


def ended_process(status: int) -> int:
    """Return the pid of a process that has exited with this status, and was not reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


class ReapingArbiter(SimpleNamespace):
    """What Gunicorn's own reaping needs of an arbiter; its workers are real processes that have exited."""

    WORKER_BOOT_ERROR = GunicornArbiter.WORKER_BOOT_ERROR
    APP_LOAD_ERROR = GunicornArbiter.APP_LOAD_ERROR
    reexec_pid = dirty_arbiter_pid = 0
    log = logging.getLogger("gunicorn.error")
    cfg = SimpleNamespace(child_exit=lambda _arbiter, _worker: None)

    def __init__(self, monkeypatch: pytest.MonkeyPatch, booted: bool, *statuses: int) -> None:
        self.is_stopping = False
        self.worker_class = SimpleNamespace(booted_before=lambda: booted)
        self.spawned, self.closed = 0, list[int]()
        self.WORKERS = dict(map(self.worker, statuses))
        waitpid = os.waitpid

        def wait_for_workers(pid: int, options: int) -> tuple[int, int]:
            """Of the children of this process, find those only: others belong to other tests."""
            assert pid == -1
            for worker in self.WORKERS:
                if (ended := waitpid(worker, options))[0]:
                    return ended
            return 0, 0

        monkeypatch.setattr(os, "waitpid", wait_for_workers)
        self.reap_workers: Any = lambda: GunicornArbiter.reap_workers(self)

    def worker(self, status: int) -> tuple[int, Any]:
        """Return an entry of WORKERS."""
        pid = ended_process(status)
        return pid, SimpleNamespace(tmp=SimpleNamespace(close=lambda: self.closed.append(pid)))

    def spawn_workers(self) -> None:
        """Count the calls."""
        self.spawned += 1

    def wait_for_signals(self, timeout: float) -> list[float]:
        """Return how long it would wait."""
        return [timeout]


def reaping_arbiter(monkeypatch: pytest.MonkeyPatch, booted: bool, *statuses: int) -> Any:
    """Return one whose workers have exited with these statuses; `booted` says whether a worker has ever served."""
    return ReapingArbiter(monkeypatch, booted, *statuses)


def test_no_exit_status_of_a_worker_ends_a_server_that_has_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Gunicorn raises in the middle of its reaping; all others are reaped all the same, and their files closed."""
    arbiter = reaping_arbiter(monkeypatch, True, 3, 0, 4, 13)
    pids = set(arbiter.WORKERS)
    survive_worker_exits(arbiter)

    arbiter.reap_workers()

    assert arbiter.WORKERS == {}
    assert set(arbiter.closed) == pids
    assert sorted(record.message for record in caplog.records if record.name == "mlsdm.server") == [
        "a worker has exited with status 3; the server goes on",
        "a worker has exited with status 4; the server goes on",
    ]


def test_a_server_whose_first_workers_cannot_boot_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken deployment is noticed at once. While it stops, nothing is raised any more: it stops normally."""
    arbiter = reaping_arbiter(monkeypatch, False, 3, 3)
    survive_worker_exits(arbiter)

    with pytest.raises(HaltServer):
        arbiter.reap_workers()
    arbiter.is_stopping = True
    arbiter.reap_workers()

    assert arbiter.WORKERS == {}


def test_workers_that_die_one_after_the_other_are_respawned_with_a_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once; a calm while later they are again. One that ends normally does not count."""
    now = [1000.0]
    arbiter = reaping_arbiter(monkeypatch, True)
    delay_respawns(arbiter, lambda: now[0])
    spawned, waited = [], []

    def turn(status: int) -> None:
        """Do what the arbiter's loop does when a worker has ended."""
        arbiter.WORKERS = dict([arbiter.worker(status)])
        arbiter.reap_workers()
        waited.extend(arbiter.wait_for_signals(timeout=1.0))
        before = arbiter.spawned
        arbiter.spawn_workers()
        spawned.append(arbiter.spawned - before)

    for status in (*[0] * BURST, *[13] * BURST, *[1] * 5):
        turn(status)
    now[0] += WORKER_DELAY_SECONDS_MAX
    turn(0)
    now[0] += WORKER_CALM_SECONDS
    turn(13)

    assert spawned == [1] * (2 * BURST) + [0] * 5 + [1, 1]
    assert waited == pytest.approx(
        [1.0] * (2 * BURST) + [DELAY_SECONDS_MIN * factor for factor in (1, 2, 4, 8, 10)] + [1.0, 1.0]
    )


def test_children_are_reaped_before_gunicorn_reaps_all() -> None:
    """They are watched then, because a reload only reaps. While the server stops, nothing is respawned."""
    children = ChildrenRecorder()
    arbiter = SimpleNamespace(
        is_stopping=False,
        reap_workers=lambda: children.calls.append("gunicorn reaps"),
        murder_workers=lambda: children.calls.append("gunicorn murders"),
        wait_for_signals=list,
    )
    serve_children(arbiter, children)

    arbiter.reap_workers()
    arbiter.is_stopping = True
    arbiter.reap_workers()
    arbiter.murder_workers()

    assert children.calls == [
        "reap, respawn=True", "gunicorn reaps", "watch",
        "reap, respawn=False", "gunicorn reaps",
        "watch", "gunicorn murders",
    ]  # fmt: skip


@pytest.mark.parametrize(("next_check", "waits"), [(float("inf"), 1.0), (0.3, 0.3), (0.0, CHECK_SECONDS_MIN)])
def test_the_loop_wakes_for_the_next_check(next_check: float, waits: float) -> None:
    """A child that is due earlier than the loop's next turn is not kept waiting; none keeps a processor busy."""
    waited: list[float] = []

    def wait_for_signals(timeout: float) -> list[int]:
        waited.append(timeout)
        return [signal.SIGCHLD]

    arbiter = SimpleNamespace(reap_workers=None, murder_workers=None, wait_for_signals=wait_for_signals)
    serve_children(arbiter, ChildrenRecorder(next_check))

    assert arbiter.wait_for_signals(timeout=1.0) == [signal.SIGCHLD]
    assert waited == [waits]


def test_no_worker_is_started_beyond_the_rows(caplog: pytest.LogCaptureFixture) -> None:
    """The arbiter then wants as many as two generations have room for."""
    arbiter = SimpleNamespace(WORKERS={1: None, 2: None}, SIGNALS=[signal.SIGUSR1], num_workers=5, spawn_worker=int)
    bound_workers(arbiter, rows=2)

    assert arbiter.spawn_worker() is None
    assert arbiter.num_workers == 1
    assert "2 hold all rows of the block" in caplog.text


def test_a_worker_that_cannot_be_forked_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Signals are blocked during the fork and delivered afterwards, whether it fails or not."""
    masks = []

    def no_fork() -> int:
        masks.append(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        raise OSError(errno.EAGAIN, "no more processes")

    arbiter = SimpleNamespace(WORKERS={}, SIGNALS=[signal.SIGUSR1], num_workers=1, spawn_worker=no_fork)
    bound_workers(arbiter, rows=2)

    assert arbiter.spawn_worker() is None
    masks.append(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert masks == [True, False]
    assert "cannot start a worker" in caplog.text


@pytest.mark.parametrize(
    ("stops", "calls"),
    [
        ([True], ["announced", "stopped"]),
        ([False], ["stopped"]),
        ([False, True], ["stopped", "stopped"]),
        ([True, True], ["announced", "stopped", "stopped"]),
    ],
)
def test_only_a_graceful_stop_is_announced(stops: list[bool], calls: list[str]) -> None:
    """Once: SIGQUIT ends at once, and Gunicorn stops a second time when it exits. No listener need be the arbiter's."""
    done: list[str] = []
    arbiter = SimpleNamespace(LISTENERS=[], is_stopping=False, stop=lambda _graceful: done.append("stopped"))
    announce_before_stop(arbiter, lambda: done.append("announced"))

    for graceful in stops:
        arbiter.stop(graceful)

    assert done == calls


def test_an_arbiter_that_cannot_start_the_next_one_stays(caplog: pytest.LogCaptureFixture) -> None:
    """USR2 without processes, or without a program to execute, is logged and changes nothing."""

    def no_fork() -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    def no_program() -> None:
        arbiter.child = os.fork()
        if arbiter.child == 0:
            raise FileNotFoundError(errno.ENOENT, "no such program")

    cases: list[tuple[Callable[[], None], str]] = [(no_fork, "no more processes"), (no_program, "")]
    for reexec, reason in cases:
        arbiter = SimpleNamespace(reexec=reexec, child=0)
        stay_at_upgrade(arbiter)
        arbiter.reexec()
        assert reason in caplog.text
    assert os.waitstatus_to_exitcode(os.waitpid(arbiter.child, 0)[1]) == 1


def test_the_cause_of_a_kill_is_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    """Gunicorn takes every SIGKILL for a lack of memory, also one that its arbiter has sent."""
    arbiter = SimpleNamespace(WORKERS={1: None, 2: None}, kill_worker=lambda _pid, _number: None)
    keep_causes(arbiter)
    log = logging.getLogger("gunicorn.error")

    arbiter.kill_worker(1, signal.SIGKILL)
    arbiter.kill_worker(2, signal.SIGTERM)
    for pid in (1, 2):
        log.error("Worker (pid:%s) was sent %s! Perhaps out of memory?", pid, "SIGKILL")

    assert [record.getMessage() for record in caplog.records] == [
        "Worker (pid:1) was sent SIGKILL!",
        "Worker (pid:2) was sent SIGKILL! Perhaps out of memory?",
    ]


def test_a_file_that_cannot_be_written_does_not_end_the_arbiter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gunicorn's own steps, in a directory that is gone: the log at USR1, the pid at the promotion of an upgrade."""
    log_file = logging.FileHandler(tmp_path / "gone" / "log", delay=True)
    pid_file = Pidfile(str(tmp_path / "gone" / "pid.2"))
    arbiter: Any = SimpleNamespace(
        log=SimpleNamespace(reopen_files=log_file._open), kill_workers=lambda _number: None,
        dirty_arbiter_pid=0, master_pid=1, pid=os.getpid(), pidfile=pid_file,
        cfg=SimpleNamespace(proc_name="mlsdm", pidfile=str(tmp_path / "gone" / "pid")),
    )  # fmt: skip
    arbiter.handle_usr1 = partial(GunicornArbiter.handle_usr1, arbiter)
    arbiter.maybe_promote_master = partial(GunicornArbiter.maybe_promote_master, arbiter)
    survive_files(arbiter)

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GUNICORN_PID", "1")
        arbiter.handle_usr1()
        arbiter.maybe_promote_master()

    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "SIGUSR1: log files are not open",
        "this arbiter has been promoted, but cannot write its pid",
    ]
