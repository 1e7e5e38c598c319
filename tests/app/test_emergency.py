"""Emergencies of real servers: full memory, corruption, a lost lock; a busy processor is none."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest

from shm.block import Block, find_blocks
from testing.eventually import eventually
from testing.live_server import Answer, LiveServer
from tests.conftest import SMALL

RAW: Final = {"Content-Type": "application/octet-stream"}
VECTOR: Final = np.ones(8, "<f4").tobytes()
HEALTHY: Final = {"memory_percent": 50.0, "cpu_percent_30s": 5.0}  # whatever the machine of the test does


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """A server with a fake sampler (see `set_sample`), whose rhythm only requests move."""
    set_sample(tmp_path)
    live = LiveServer(
        tmp_path,
        {
            **SMALL,
            "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events",
            "SAMPLE": str(tmp_path / "sample.json"),
        },
        application="tests.app.fake_sampler_app:app",
    )
    live.start()
    eventually(lambda: live.get("/readyz").status == 200)
    yield live
    live.stop()


def set_sample(directory: Path, **figures: float) -> None:
    """Have the sampler report a healthy machine, except for these figures."""
    (directory / "sample.new").write_text(json.dumps({**HEALTHY, **figures}), encoding="utf-8")
    (directory / "sample.new").rename(directory / "sample.json")


def event(server: LiveServer) -> Answer:
    """Send an event that is accepted whenever events are decided."""
    return server.request("POST", "/event", VECTOR, {**RAW, "Moral-Value": "0.95"})


def recall(server: LiveServer) -> Answer:
    """Recall the memories nearest to the one vector that is used here."""
    return server.request("POST", "/recall?top_k=5", VECTOR, RAW)


def failed_checks(server: LiveServer) -> set[str]:
    """Return the names of the readiness checks that fail; assert that the status agrees."""
    answer = server.get("/health/readiness")
    failed = {name for name, check in answer.json["checks"].items() if not check["healthy"]}
    assert answer.status == (503 if failed - {"system_cpu"} else 200)
    return failed


def metric(server: LiveServer, name: str) -> float:
    """Return one sample of the scrape by its name with labels."""
    [line] = [line for line in server.get("/metrics").body.decode().splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])


def emergency(server: LiveServer) -> Any:
    """Return the emergency of the detailed document."""
    return server.get("/health/detailed").json["emergency"]


def controller(server: LiveServer) -> int:
    """Return the pid of the controller."""
    return server.controller(server.block())


@contextmanager
def writable_block(server: LiveServer) -> Iterator[Block]:
    """Map the server's block writable, from outside."""
    _, link = next(iter(find_blocks(server.pid)))
    descriptor = os.open(link, os.O_RDWR)
    yield Block.open(descriptor, writable=True)
    os.close(descriptor)


def test_full_memory_refuses_events_until_the_cooldown_is_over(server: LiveServer, tmp_path: Path) -> None:
    """Readiness, the detailed document, the metrics and one log line tell it; everything else continues. It can happen
    again.
    """
    assert event(server).status == 200
    for episode in (1, 2):
        set_sample(tmp_path, memory_percent=95.0)
        eventually(lambda: failed_checks(server) == {"system_memory"})

        refused = event(server)
        assert (refused.status, refused.json["code"], refused.headers["retry-after"]) == (503, "memory_exhausted", "30")
        assert server.get("/livez").status == 200
        assert recall(server).json["matches"][0]["memory_id"] == 2 * episode - 1
        assert server.get("/memories/1").status == 200
        assert metric(server, 'mlsdm_emergency{reason="memory"}') == 1
        shown = emergency(server)
        assert (shown["active"], shown["reasons"], shown["episodes"]) == (True, ["memory"], episode)
        assert 0 <= shown["since_seconds"] < 60

        set_sample(tmp_path, memory_percent=94.9)
        eventually(lambda: failed_checks(server) == set())
        assert event(server).json["memory_id"] == 2 * episode
        assert event(server).json["memory_id"] == 2 * episode + 1
        assert emergency(server) == {"active": False, "reasons": [], "episodes": episode}
        assert metric(server, 'mlsdm_emergency{reason="memory"}') == 0
        assert server.log.count("emergency: memory is nearly full") == episode
        assert server.log.count("emergency over: ") == episode
    assert metric(server, "mlsdm_emergency_episodes_total") == 2


def test_an_operator_may_overrule_full_memory(server: LiveServer, tmp_path: Path) -> None:
    """After POST /governor/resume events are decided and the server is ready, although memory is still full."""
    set_sample(tmp_path, memory_percent=99.0)
    eventually(lambda: failed_checks(server) == {"system_memory"})
    assert event(server).status == 503

    assert server.request("POST", "/governor/resume").status == 200

    assert event(server).status == 200
    eventually(lambda: failed_checks(server) == set())
    assert "ended by an operator's order" in server.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_emergency_outlives_its_controller(server: LiveServer, tmp_path: Path, number: signal.Signals) -> None:
    """Its successor keeps events refused, logs nothing twice, and ends it when the cause is gone."""
    set_sample(tmp_path, memory_percent=99.0)
    eventually(lambda: failed_checks(server) == {"system_memory"})
    first = controller(server)

    os.kill(first, number)

    assert event(server).json["code"] == "memory_exhausted"
    eventually(lambda: controller(server) != first)
    assert event(server).json["code"] == "memory_exhausted"
    set_sample(tmp_path)
    eventually(lambda: event(server).status == 200)
    assert emergency(server)["episodes"] == 1
    assert server.log.count("emergency: ") == 1


def test_a_busy_processor_is_reported_and_refuses_no_event(server: LiveServer, tmp_path: Path) -> None:
    """The server is ready: other load on the machine does not show how well it serves."""
    set_sample(tmp_path, cpu_percent_30s=98.0)

    eventually(lambda: failed_checks(server) == {"system_cpu"})
    assert server.get("/health/readiness").status == 200
    assert event(server).status == 200
    assert emergency(server)["active"] is False
    set_sample(tmp_path, cpu_percent_30s=97.9)
    eventually(lambda: failed_checks(server) == set())


def test_corruption_is_reported_and_refused_until_it_is_undone(server: LiveServer) -> None:
    """A bit of the committed state is flipped from outside: no controller dies and no event is decided. When it is
    flipped back, events are decided after the cooldown.
    """
    assert event(server).status == 200
    first = controller(server)
    with writable_block(server) as block:
        state = block.region("states", block.position & 1)
        flip(state)
        eventually(lambda: failed_checks(server) == {"memory_manager"})
        eventually(lambda: emergency(server)["reasons"] == ["corrupt"])

        assert (event(server).status, event(server).json["code"]) == (503, "store_corrupt")
        assert server.get("/livez").status == 200
        assert recall(server).json["code"] == "store_corrupt"
        assert server.request("POST", "/governor/resume").json["code"] == "store_corrupt"
        assert metric(server, 'mlsdm_emergency{reason="corrupt"}') == 1
        os.kill(first, signal.SIGKILL)
        eventually(lambda: controller(server) != first)
        assert controller_beats(server)
        assert failed_checks(server) == {"memory_manager"}
        flip(state)
        assert recall(server).status == 200
        refused = event(server)
        assert (refused.status, refused.json["code"]) == (503, "store_corrupt")

    eventually(lambda: event(server).status == 200, seconds=40.0)
    eventually(lambda: failed_checks(server) == set())
    assert server.log.count("emergency: the committed state is corrupt") == 1
    assert server.log.count("emergency over: ") == 1


def flip(state: Any) -> None:
    """Flip one bit of the threshold."""
    theta = ctypes.c_uint64.from_buffer_copy(ctypes.c_double(state.scalars.theta))
    theta.value ^= 1 << 40
    state.scalars.theta = ctypes.c_double.from_buffer_copy(theta).value


def controller_beats(server: LiveServer) -> bool:
    """Wait for a heartbeat of the controller."""
    block = server.block()
    vitals = block.region("vitals")
    before = int(vitals.heartbeat_ns)
    return bool(eventually(lambda: int(vitals.heartbeat_ns) > before))


_LOSE_LOCK = """
import ctypes, mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
mutex = ctypes.byref(ctypes.c_char.from_buffer(memory, int(sys.argv[2])))
threads = ctypes.CDLL(None)
if os.fork() == 0:
    os._exit(threads.pthread_mutex_trylock(mutex))
if os.wait()[1] == 0:
    threads.pthread_mutex_trylock(mutex)
    threads.pthread_mutex_unlock(mutex)
    print(threads.pthread_mutex_lock(mutex))
"""


def test_a_lost_lock_is_reported_and_memories_can_be_read(server: LiveServer) -> None:
    """An owner died, the next one unlocked without repair: the kernel hands the lock to nobody again."""
    assert event(server).status == 200
    lose_lock(server)
    eventually(lambda: failed_checks(server) == {"lock"})

    assert (event(server).status, event(server).json["code"]) == (503, "store_lost")
    assert server.get("/livez").status == 200
    assert recall(server).json["matches"][0]["memory_id"] == 1
    assert server.get("/memories/1").status == 200
    assert server.get("/state").status == 200
    assert server.request("POST", "/governor/resume").json["code"] == "store_lost"
    assert metric(server, 'mlsdm_emergency{reason="lock"}') == 1
    assert emergency(server)["reasons"] == ["lock"]
    assert controller_beats(server)
    assert server.log.count("emergency: the lock is beyond repair") == 1
    assert "silent" not in server.log


def lose_lock(server: LiveServer) -> None:
    """Make the lock irrecoverable, with every process that might repair it stopped meanwhile."""
    block = server.block()
    [lock] = [region for region in block.layout.regions() if region.name == "lock"]
    _, link = next(iter(find_blocks(server.pid)))
    service = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    for _ in range(20):
        for process in service:
            process.suspend()
        try:
            printed = subprocess.run(
                [sys.executable, "-c", _LOSE_LOCK, str(link), str(lock.offset)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        finally:
            for process in service:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        if printed:  # else one of them was stopped inside the section
            assert os.strerror(int(printed)) == "State not recoverable"
            return
    raise AssertionError("the lock was never free")
