"""The watch over workers: with workers that the test plays, and with a real server whose workers are stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from app.processes.arbiter_record import KillReason
from app.processes.silence import CHECK_SECONDS_MAX
from app.processes.worker_watch import STOPPED_SECONDS, WorkerWatch
from core.heartbeat import SILENCE_SECONDS
from testing.eventually import eventually
from tests.conftest import Serve

TIMEOUT = 30.0


class Watched:
    """One real process as the only worker of an arbiter; time and beats are the test's."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.now = 100.0
        self.beat = 1.0
        self.signals: list[int] = []
        worker = SimpleNamespace(tmp=SimpleNamespace(last_update=lambda: self.beat), has_booted=True)
        self.arbiter = SimpleNamespace(
            WORKERS={self.process.pid: worker},
            timeout=TIMEOUT,
            kill_worker=lambda _pid, number: self.signals.append(number),
        )
        self.kills: list[KillReason] = []
        self.watch = WorkerWatch(self.arbiter, self.kills.append, lambda: self.now)
        self.watch.check()

    def live(self, seconds: float, beats: bool = False) -> None:
        """Let time pass as the arbiter's loop does, with checks when they are due."""
        until = self.now + seconds
        while self.now < until:
            self.now += min(max(self.watch.seconds_to_next_check(), 0.05), CHECK_SECONDS_MAX)
            self.beat += beats
            self.watch.check()

    def stop(self) -> None:
        """Stop the process, as SIGSTOP from a terminal does."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.process.kill()
    watched.process.wait()


def test_a_worker_that_beats_is_left_alone(watched: Watched) -> None:
    """Whatever else it does."""
    watched.stop()
    watched.live(2 * TIMEOUT, beats=True)

    assert watched.signals == []


def test_silence_is_told_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """Soon, with the state of the process; and again after its next heartbeat."""
    watched.stop()
    for _ in range(2):
        watched.live(SILENCE_SECONDS)
        assert len(caplog.records) == 0
        watched.live(0.6 * SILENCE_SECONDS)
        assert [record.getMessage() for record in caplog.records] == [
            f"worker pid={watched.process.pid} has been silent for 2 s (stopped by a signal)"
        ]
        caplog.clear()
        watched.live(0.3, beats=True)


def test_a_stopped_worker_is_killed(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """Not at once: it may be continued."""
    watched.stop()
    watched.live(STOPPED_SECONDS - 1)
    assert watched.signals == []
    watched.live(2)

    assert watched.signals[0] == signal.SIGKILL
    assert watched.kills == [KillReason.STOPPED]
    assert "is stopped, and is killed and replaced" in caplog.text


def test_a_stuck_worker_is_aborted_and_then_killed(watched: Watched) -> None:
    """Its traceback is written at the first signal; it may not notice any other."""
    watched.live(TIMEOUT)
    assert watched.signals == []
    watched.live(0.2 * TIMEOUT)

    assert watched.signals[:2] == [signal.SIGABRT, signal.SIGKILL]
    assert watched.kills == [KillReason.STUCK]


def test_no_timeout_means_never(watched: Watched) -> None:
    """Gunicorn's setting 0; a stopped worker is killed all the same."""
    watched.arbiter.timeout = 0
    watched.live(3 * TIMEOUT)
    assert watched.signals == []
    assert watched.kills == []


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_machine_that_stood_still_kills_nobody(watched: Watched, is_stopped: bool) -> None:
    """An hour passes in which no process ran, the arbiter included; the worker beats soon after."""
    if is_stopped:
        watched.stop()
    watched.live(SILENCE_SECONDS / 2)
    watched.now += 3_600
    watched.live(0.3)
    watched.live(5, beats=True)

    assert watched.signals == []


def test_a_stopped_worker_of_a_server_is_replaced(serve: Serve) -> None:
    """Readiness says so while it is stopped; the log gives the cause, without Gunicorn's guess."""
    server = serve()
    stopped = max(owner.pid for _, owner in server.store().block.live_workers())
    os.kill(stopped, signal.SIGSTOP)

    unready = eventually(lambda: (answer := server.get("/health/readiness")).status == 503 and answer)
    assert f"worker pid={stopped} has been silent for" in unready.json["checks"]["workers"]["reason"]
    eventually(lambda: server.get("/health/readiness").status == 200)
    assert stopped not in {owner.pid for _, owner in server.store().block.live_workers()}
    assert f"worker pid={stopped} has been silent for 2 s (stopped by a signal)" in server.log
    assert f"worker pid={stopped} is stopped, and is killed and replaced" in server.log
    assert "out of memory" not in server.log
    killed = [line for line in server.get("/metrics").body.splitlines() if line.startswith(b"mlsdm_workers_killed")]
    assert killed == [
        b'mlsdm_workers_killed_total{reason="stopped"} 1.0', b'mlsdm_workers_killed_total{reason="stuck"} 0.0',
    ]  # fmt: skip
