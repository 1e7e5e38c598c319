"""Rehearsals: whatever the code of a package does, it does in a fork, within a time that all of them share."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from app.lifecycle import rehearsal
from app.lifecycle.rehearsal import Rehearsals
from testing.eventually import eventually
from testing.live_server import ROOT


def _grow() -> None:
    kept = []
    while True:
        kept.append(bytes(1 << 26))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal that does end may take as long as a busy machine needs."""
    monkeypatch.setattr(rehearsal, "REHEARSAL_SECONDS_MAX", 60.0)


def test_a_rehearsal_tells_what_would_have_happened(patient: None) -> None:
    """In a fork: here nothing is raised, nobody dies, and no memory is gone."""
    rehearse = Rehearsals(seconds=600.0).rehearse

    assert rehearse("a", lambda: None) == ""
    assert rehearse("a", lambda: 1 / 0) == "ZeroDivisionError: division by zero"
    assert rehearse("a", lambda: sys.exit(3)) == "SystemExit: 3"
    assert rehearse("a", lambda: os._exit(3)) == "the process died"
    assert rehearse("a", _grow) == "MemoryError: "


def test_a_rehearsal_tells_what_would_be_left_in_the_arbiter(patient: None) -> None:
    """A thread makes each fork unsafe, and keeps the arbiter from ending. Without handlers it hears of nothing."""
    rehearse = Rehearsals(seconds=600.0).rehearse

    def start_thread() -> None:
        threading.Thread(target=time.sleep, args=(3600,), name="sender", daemon=True).start()

    def end_thread() -> None:
        ended = threading.Thread(target=time.sleep, args=(0,))
        ended.start()
        ended.join()

    assert rehearse("a", start_thread) == "it leaves the thread sender behind"
    assert rehearse("a", end_thread) == ""
    for handler in (signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler):
        reason = "it changes the handler of SIGTERM"
        assert rehearse("a", partial(signal.signal, signal.SIGTERM, handler)) == reason
    assert rehearse("a", lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) == "it changes the handler of SIGCHLD"
    assert rehearse("a", lambda: subprocess.run(["true"], check=True)) == ""


def test_rehearsals_share_their_time() -> None:
    """Each has half of what is left at most, so one that follows those that hang has some. No process is left."""
    before = {child.pid for child in psutil.Process().children()}  # servers of other tests, which share this process
    rehearse = Rehearsals(seconds=0.8).rehearse

    assert rehearse("a", lambda: time.sleep(3600)) == "it took more than 0.4 s"
    assert rehearse("a", lambda: time.sleep(3600)) in {"it took more than 0.2 s", "it took more than 0.1 s"}
    assert {child.pid for child in psutil.Process().children()} <= before


def test_the_arbiter_serves_its_children_meanwhile(patient: None, tmp_path: Path) -> None:
    """The work here ends because of what `serve` does."""
    served = tmp_path / "served"

    def wait() -> None:
        while not served.exists():
            time.sleep(0.01)

    assert Rehearsals(served.touch, seconds=600.0).rehearse("a", wait) == ""


def test_what_a_rehearsal_has_started_ends_with_it(patient: None, tmp_path: Path) -> None:
    """A package may start processes at its import."""
    pid_file = tmp_path / "pid"

    def start() -> None:
        pid_file.write_text(str(subprocess.Popen(["sleep", "3600"]).pid))

    assert Rehearsals(seconds=600.0).rehearse("a", start) == ""
    pid = int(pid_file.read_text())
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_rehearsal_dies_with_its_arbiter(tmp_path: Path) -> None:
    """Killed while a rehearsal hangs, an arbiter leaves no process."""
    pid_file = tmp_path / "pid"
    program = f"""
import os, pathlib, time
from app.lifecycle import rehearsal
rehearsal.REHEARSAL_SECONDS_MAX = 3600.0
def hang():
    pathlib.Path({str(pid_file)!r} + ".new").write_text(str(os.getpid()))
    os.rename({str(pid_file)!r} + ".new", {str(pid_file)!r})
    time.sleep(3600)
rehearsal.Rehearsals(seconds=7200.0).rehearse("a", hang)
"""
    arbiter = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    eventually(pid_file.exists)
    rehearsed = psutil.Process(int(pid_file.read_text()))
    arbiter.send_signal(signal.SIGKILL)
    arbiter.wait()

    eventually(lambda: not rehearsed.is_running() or rehearsed.status() == psutil.STATUS_ZOMBIE)
