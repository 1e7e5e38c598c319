"""The supervisor judges a controller by looks of its own. With real servers: tests/app/test_server.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.processes import supervisor
from app.processes.supervisor import SPAWNS, SPAWNS_SECONDS, Supervisor
from shm import process
from testing.block_fixture import Formed
from testing.eventually import HANG_SECONDS


class Watched:
    """A supervisor with a controller that has just beaten, at a time that the test sets."""

    def __init__(self, child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch) -> None:
        self.child = child
        self.now = 1000.0
        monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: self.now))
        vitals = SimpleNamespace(heartbeat_ns=1)
        block: Any = SimpleNamespace(region=lambda _name: vitals)
        config: Any = SimpleNamespace(observability=None)
        self.supervisor = Supervisor(block, lambda: config, lambda: None, lambda: None)
        self.supervisor._controller = process.identify(child.pid)
        self.look(0.0)

    def look(self, later: float) -> None:
        """Look, so many seconds after the last time."""
        self.now += later
        self.supervisor.watch()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Watch a process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield Watched(child, monkeypatch)
        child.kill()


def test_a_controller_that_is_silent_for_two_looks_of_a_second_is_killed(watched: Watched) -> None:
    """The second look without a beat ends it."""
    watched.look(1.0)
    assert watched.child.poll() is None

    watched.look(1.0)

    assert watched.child.wait(HANG_SECONDS) == -signal.SIGKILL


def test_many_looks_after_a_freeze_are_no_silence(watched: Watched) -> None:
    """The arbiter, too, stood still, and is woken by each of its children that went on; only then does time count."""
    watched.look(5.0)
    for _ in range(100):
        watched.look(0.001)

    assert watched.child.poll() is None
    watched.look(1.0)
    assert watched.child.wait(HANG_SECONDS) == -signal.SIGKILL


def test_a_controller_that_cannot_live_is_respawned_five_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once while there were fewer within a second, and then no sooner than that second is over, at each look."""
    formed, now, spawned = Formed(), 1000.0, 0

    def die() -> None:
        os._exit(1)

    def until_rest() -> int:
        """Let every controller die until none is spawned any more; return how many there were."""
        nonlocal spawned
        before = spawned
        while keeper._controller.pid and spawned - before <= SPAWNS:
            os.waitid(os.P_PID, keeper._controller.pid, os.WEXITED | os.WNOWAIT)
            spawned += 1
            keeper.reap(respawn=True)
        return spawned - before

    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now))
    config: Any = SimpleNamespace(observability=None)
    keeper = Supervisor(formed.block, lambda: config, die, lambda: None)
    keeper.spawn()
    assert until_rest() == SPAWNS
    for _ in range(100):
        keeper.watch()
    assert until_rest() == 0
    now += SPAWNS_SECONDS
    keeper.watch()
    assert until_rest() == SPAWNS
    formed.close()
