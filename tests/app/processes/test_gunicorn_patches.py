"""The patches of Gunicorn's arbiter. With real servers: test_server.py, tests/loadtests/faults/test_reload.py."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from app.processes.gunicorn_patches import (
    CHECK_SECONDS_MIN,
    announce_before_stop,
    bound_workers,
    keep_at_reload,
    serve_children,
    stay_at_upgrade,
)


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


def test_children_are_reaped_before_gunicorn_reaps_all() -> None:
    """They are watched then, because a reload only reaps. Without listeners the server stops: nothing is respawned."""
    children = ChildrenRecorder()
    arbiter = SimpleNamespace(
        LISTENERS=["listener"],
        reap_workers=lambda: children.calls.append("gunicorn reaps"),
        murder_workers=lambda: children.calls.append("gunicorn murders"),
        wait_for_signals=list,
    )
    serve_children(arbiter, children)

    arbiter.reap_workers()
    arbiter.LISTENERS = []
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
    ("graceful", "listeners", "calls"),
    [(True, ["one"], ["announced", "stopped"]), (True, [], ["stopped"]), (False, ["one"], ["stopped"])],
)
def test_only_a_graceful_stop_of_a_listening_server_is_announced(
    graceful: bool, listeners: list[str], calls: list[str]
) -> None:
    """SIGQUIT ends at once, and a server that has stopped listening has nobody to tell."""
    done: list[str] = []
    arbiter = SimpleNamespace(LISTENERS=listeners, stop=lambda _graceful: done.append("stopped"))
    announce_before_stop(arbiter, lambda: done.append("announced"))

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


def test_settings_that_cannot_be_read_again_are_kept() -> None:
    """A broken gunicorn.conf.py at HUP: Gunicorn would forget its settings and exit."""

    def broken() -> None:
        application.cfg = "none"
        sys.exit(1)

    application = SimpleNamespace(cfg="those in force", reload=broken)
    keep_at_reload(application)

    application.reload()

    assert application.cfg == "those in force"
