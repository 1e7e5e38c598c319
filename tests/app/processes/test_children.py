"""Supervised children of real servers: they live and die with the arbiter, and disturb no other process."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import LiveServer
from tests.conftest import SMALL

MB = 1_000_000


class Served:
    """A server with the children that its file declares."""

    def __init__(self, directory: Path, **children: dict[str, Any]) -> None:
        self.directory = directory
        self.declare(**children)
        self.server = LiveServer(
            directory,
            {**SMALL, "CHILDREN": str(directory / "children.json")},
            application="tests.app.processes.children_app:app",
        )

    def declare(self, **children: dict[str, Any]) -> None:
        """Say which children there are from the next reload on."""
        path = self.directory / "children.json"
        path.with_suffix(".new").write_text(json.dumps(children), encoding="utf-8")
        path.with_suffix(".new").rename(path)

    def reload(self, **children: dict[str, Any]) -> None:
        """Have the server supervise these children from now on."""
        self.declare(**children)
        os.kill(self.server.pid, signal.SIGHUP)

    def pids(self, name: str) -> list[int]:
        """Return the pids that a child has had, oldest first."""
        path = self.directory / f"{name}.pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def alive(self, name: str) -> list[int]:
        """Return the pids of this child that live."""
        return [pid for pid in self.pids(name) if psutil.pid_exists(pid)]

    def restarted(self, name: str, count: int = 2) -> int:
        """Wait until a child was started `count` times; return its newest pid."""
        eventually(lambda: len(self.pids(name)) >= count)
        return self.pids(name)[-1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start servers with children, and stop them."""
    started: list[Served] = []

    def start(**children: dict[str, Any]) -> Served:
        one = Served(tmp_path, **children)
        started.append(one)
        one.server.start()
        return one

    yield start
    for one in started:
        one.server.stop()


def test_children_that_die_hang_or_grow_are_replaced_while_requests_are_answered(served: Callable[..., Served]) -> None:
    """Each for its own reason, under its own name in the log; the workers do not notice."""
    one = served(
        dies={"acts": "wait"},
        hangs={"acts": "hang", "silence_seconds": 0.5},
        grows={"acts": "grow", "memory_size_max": 200 * MB},
    )

    os.kill(one.restarted("dies", 1), signal.SIGKILL)
    for name in ("dies", "hangs", "grows"):
        one.restarted(name)
        assert one.server.failed_checks() == set()

    eventually(lambda: "grows pid=" in one.server.log and "of anonymous memory" in one.server.log)
    assert f"hangs pid={one.pids('hangs')[0]} is silent and is killed" in one.server.log
    scrape = one.server.get("/metrics").body.decode()
    assert 'mlsdm_child_last_end{child="dies",reason="killed"} 1.0' in scrape
    assert 'mlsdm_child_starts_total{child="dies"} 2.0' in scrape
    assert 'mlsdm_child_up{child="dies"} 1.0' in scrape
    assert f"dies pid={one.pids('dies')[0]} died (status 9) and is respawned" in one.server.log


def test_a_reader_follows_the_store(served: Callable[..., Served]) -> None:
    """Its facade shows what the workers decide."""
    one = served(reader={"acts": "follow"})
    headers = {"Content-Type": "application/octet-stream", "Moral-Value": "0.95"}
    for _ in range(3):
        assert one.server.request("POST", "/event", b"\0\0\x80\x3f" * 8, headers).status == 200

    eventually(lambda: (one.directory / "reader.position").read_text() == "3")


def test_a_child_that_always_exits_costs_the_arbiter_little(served: Callable[..., Served]) -> None:
    """The delays grow; SIGTERM in a back-off ends the server in order."""
    one = served(exits={"acts": "exit"})
    one.restarted("exits", 6)  # 0, 0.1, 0.2, 0.4, 0.8 s
    arbiter = psutil.Process(one.server.pid)
    before, starts = sum(arbiter.cpu_times()[:2]), len(one.pids("exits"))

    one.restarted("exits", starts + 1)  # 1.6 s or more later

    assert sum(arbiter.cpu_times()[:2]) - before < 0.5
    [line, *_] = [line for line in one.server.log.splitlines() if "mlsdm.children" in line]
    assert json.loads(line)["child"] == "exits" if line.startswith("{") else line.endswith("exits child=exits")
    process = one.server.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_SECONDS) == 0
    assert "Traceback" not in one.server.log
    one.server.process = None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_a_child_that_does_not_end_does_not_keep_the_server(
    served: Callable[..., Served], number: signal.Signals
) -> None:
    """It is killed."""
    one = served(defies={"acts": "defy"})
    pid = one.restarted("defies", 1)
    process = one.server.process
    assert process is not None

    process.send_signal(number)

    assert process.wait(HANG_SECONDS) == 0
    assert not psutil.pid_exists(pid)
    one.server.process = None


def test_a_reload_replaces_what_differs_and_serves_meanwhile(served: Callable[..., Served]) -> None:
    """A child that does not end in time is killed; the new one starts when the old one is gone."""
    one = served(
        same={"acts": "wait", "settings": 1},
        differs={"acts": "wait", "settings": 1},
        defies={"acts": "defy", "settings": 1},
    )
    first = {name: one.restarted(name, 1) for name in ("same", "differs", "defies")}

    one.reload(
        same={"acts": "wait", "settings": 1},
        differs={"acts": "wait", "settings": 2},
        defies={"acts": "wait", "settings": 2},
        new={"acts": "wait"},
    )
    for name, count in (("differs", 2), ("defies", 2), ("new", 1)):
        one.restarted(name, count)
        assert one.server.failed_checks() == set()

    eventually(lambda: all(len(one.alive(name)) == 1 for name in ("same", "differs", "defies", "new")))
    assert one.pids("same") == [first["same"]]
    assert f"defies pid={first['defies']} does not end and is killed" in one.server.log
    one.reload()
    eventually(lambda: not any(one.alive(name) for name in ("same", "differs", "defies", "new")))


def test_an_arbiter_that_is_killed_takes_its_children_with_it(served: Callable[..., Served]) -> None:
    """Waiting, hanging or in a loop."""
    one = served(waits={"acts": "wait"}, hangs={"acts": "hang"}, defies={"acts": "defy"})
    children = [psutil.Process(one.restarted(name, 1)) for name in ("waits", "hangs", "defies")]
    assert one.server.process is not None

    one.server.process.kill()
    one.server.process.wait(HANG_SECONDS)

    _, alive = psutil.wait_procs(children, timeout=HANG_SECONDS)
    assert alive == []
    one.server.process = None


def test_an_upgrade_hands_the_children_over_and_the_way_back_returns_them(served: Callable[..., Served]) -> None:
    """The old arbiter's child ends when the newer controller has taken over, and is back when that arbiter goes."""
    one = served(waits={"acts": "wait"})
    first = one.restarted("waits", 1)
    store = one.server.store()

    os.kill(one.server.pid, signal.SIGUSR2)
    second = one.restarted("waits", 2)
    eventually(lambda: one.alive("waits") == [second])
    new = int(eventually(lambda: (pid := int(store.block.region("vitals").arbiter_pid)) != one.server.pid and pid))
    eventually(lambda: one.server.log.count("serves from row") == 4)
    os.kill(new, signal.SIGTERM)
    third = one.restarted("waits", 3)

    eventually(lambda: one.alive("waits") == [third])
    assert first != third
    assert one.server.failed_checks() == set()


@pytest.mark.slow
def test_a_freeze_of_the_whole_server_kills_no_child(served: Callable[..., Served]) -> None:
    """All stop and go on together, as in a container that is paused: for none of them has that time passed."""
    one = served(waits={"acts": "wait", "silence_seconds": 3.0})
    first = one.restarted("waits", 1)
    arbiter = psutil.Process(one.server.pid)
    frozen = [arbiter, *arbiter.children(recursive=True)]

    for process in frozen:
        process.suspend()
    time.sleep(4)
    for process in frozen:
        process.resume()
    time.sleep(4)  # more than the arbiter would need to find a silent child

    assert one.pids("waits") == [first]
    os.kill(first, signal.SIGSTOP)
    one.restarted("waits")
