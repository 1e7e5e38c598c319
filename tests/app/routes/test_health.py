"""/health: liveness, readiness and the detailed document, against a real server and against a damaged block."""

import ctypes
import faulthandler
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from app.api.access.gate import Gate, KeyAuthenticator
from app.api.access.quotas import Quotas
from app.api.context import Context
from app.api.fast_path import FastPath
from app.routes.health import DetailedResource, LivenessResource, ReadinessResource
from app.routes.metrics import BlockCollector
from core.access.keys import Keyring
from core.settings.config import Config, Health
from core.settings.tiers import tiers
from shm import errors, process
from shm.block import Block, BlockIdentity
from shm.layout import NO_ROW, Layout
from shm.recall import Recall
from shm.records import new_vitals
from shm.store import Store
from testing import keys
from testing.block_fixture import SMALL as SMALL_LAYOUT
from testing.block_fixture import Formed, begin, end, exit_of, take_mutex
from testing.bodies import accepted
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import LiveServer
from tests.conftest import SMALL
from tests.programs import needs

PROT_NONE = 0  # sys/mman.h
CHECKS = {"server", "memory_manager", "lock", "admissions", "system_memory", "system_cpu", "workers", "controller"}


@pytest.mark.parametrize("path", ["/health/liveness", "/livez"])
def test_liveness_is_always_200(still_server: LiveServer, path: str) -> None:
    """One constant document."""
    answer = still_server.get(path)

    assert (answer.status, answer.headers["content-type"], answer.json) == (
        200,
        "application/json",
        {"status": "alive"},
    )


@pytest.mark.parametrize("path", ["/health/readiness", "/readyz"])
def test_readiness_says_which_checks_hold(still_server: LiveServer, path: str) -> None:
    """The status follows from the checks, and a check that fails says why (a busy machine may fail one of them)."""
    answer = still_server.get(path)

    document = answer.json
    assert set(document) == {"ready", "status", "checks"}
    assert set(document["checks"]) == CHECKS
    gating = [check["healthy"] for check in document["checks"].values() if check.get("gates", True)]
    assert document["ready"] == all(gating)
    assert (answer.status, document["status"]) == ((200, "ready") if document["ready"] else (503, "not_ready"))
    assert all(check["healthy"] or check["reason"] for check in document["checks"].values())
    assert document["checks"]["memory_manager"] == {"healthy": True}


def test_the_detailed_document_has_the_documented_members(still_server: LiveServer) -> None:
    """Each value that operators take out of it with jq is there, and agrees with the state."""
    accepted(still_server)
    # An answer is counted before it is written, its time after that: the client may be here sooner.
    eventually(lambda: still_server.get("/health/detailed").json["statistics"]["avg_latency_ms"])

    document, state = still_server.get("/health/detailed").json, still_server.state()

    assert set(document) == {
        "status", "timestamp", "uptime_seconds", "system", "checks", "memory_state", "phase", "statistics",
        "rate_limiting", "version", "boot_id", "log_id", "emergency",
    }  # fmt: skip
    assert document["status"] in ("healthy", "unhealthy")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(document["timestamp"])).total_seconds()) < 60
    assert document["uptime_seconds"] > 0
    assert set(document["checks"]) == CHECKS
    assert document["memory_state"] == {
        "L1_norm": state["L1_norm"],
        "L2_norm": state["L2_norm"],
        "L3_norm": state["L3_norm"],
        "used": state["memory_used"],
        "capacity": state["capacity"],
    }
    assert document["phase"] == state["current_phase"]
    latency = document["statistics"].pop("avg_latency_ms")
    assert 0 < latency < 1000
    assert document["statistics"] == {
        "total_events_processed": state["total_events_processed"],
        "accepted_events_count": state["accepted_events_count"],
        "latent_events_count": state["latent_events_count"],
        "rejected_events_count": state["latent_events_count"],
        "moral_filter_threshold": state["moral_filter_threshold"],
    }
    assert document["rate_limiting"] == {
        "enabled": False,
        "requests_per_second": 5.0,
        "burst_capacity": 10,
        "tiers": {
            "standard": {"rate": 5.0, "burst": 10},
            "high": {"rate": 100.0, "burst": 200},
            "bulk": {"rate": 10_000.0, "burst": 20_000},
        },
    }
    assert (document["boot_id"], document["log_id"]) == (state["boot_id"], state["log_id"])
    assert document["version"]


def test_the_machine_is_described(still_server: LiveServer) -> None:
    """By the controller's samples: the container's figures, the host's where nothing limits it."""
    system = eventually(lambda: (s := still_server.get("/health/detailed").json["system"])["memory_total_mb"] and s)

    assert set(system) == {
        "memory_percent", "memory_available_mb", "memory_total_mb", "cpu_percent", "cpu_count", "disk_percent",
    }  # fmt: skip
    assert 0 < system["memory_available_mb"] <= system["memory_total_mb"]
    assert 0 < system["memory_percent"] <= 100
    assert 0 <= system["cpu_percent"] <= 100
    assert 1 <= system["cpu_count"] <= (os.cpu_count() or 1)
    assert 0 < system["disk_percent"] <= 100


def test_health_answers_while_every_other_process_is_stopped(serve: Callable[..., LiveServer]) -> None:
    """With every other process of the server stopped, one worker still says that it lives, and reads the state."""
    server = serve(WORKERS="2")
    answering, *others = server.workers(server.block())
    controller = [child.pid for child in psutil.Process(server.pid).children() if child.pid not in (answering, *others)]
    stopped = [*others, *controller]

    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        # New connections are shared, so ask until the one that runs has answered.
        alive = eventually(lambda: _status_soon(server, "/health/liveness"))
        detailed = eventually(lambda: _status_soon(server, "/health/detailed"))
    finally:
        for pid in stopped:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGCONT)

    assert (alive, detailed) == (200, 200)


def test_liveness_answers_when_everything_else_is_taken(serve: Callable[..., LiveServer]) -> None:
    """Every connection in use, every thread of the pool waiting for a controller that is stopped, and its arbiter too:
    a probe that comes now is answered while all of them still wait.
    """
    server = serve(WORKERS="1", MLSDM_SERVER__CONNECTIONS_MAX="12")
    block = server.block()
    controller = server.controller(block)
    idle = [server.connect() for _ in range(12)]
    eventually(lambda: _status_soon(server, "/livez") == 200)  # one of them has been idle for long enough to go
    answers: list[int] = []
    probed: list[int] = []

    def command() -> None:
        answers.append(server.request("POST", "/governor/reset").status)

    commands = [threading.Thread(target=command) for _ in range(6)]  # three times as many as there are threads
    for pid in (server.pid, controller):
        os.kill(pid, signal.SIGSTOP)
    try:
        for thread in commands:
            thread.start()
        while len(answers) < len(commands):
            probed.append(server.get("/health/liveness").status)
        for thread in commands:
            thread.join()
    finally:
        for pid in (server.pid, controller):
            os.kill(pid, signal.SIGCONT)
    for connection in idle:
        connection.close()

    assert set(probed) == {200}
    assert set(answers) == {503}


# Lines as operators paste them from a runbook, and what each must print.
RUNBOOK = {
    """curl -H "Authorization: Bearer $API_KEY" http://api/health/detailed | jq '.statistics.moral_filter_threshold'""":
        r"0\.[0-9]+",
    "curl -s http://api/health/detailed | jq .statistics.moral_filter_threshold": r"0\.[0-9]+",
    "curl http://api/health/detailed | jq '.memory_state'": r'\{\s+"L1_norm": [0-9.e-]+,.*"capacity": 1000\s+\}',
    "curl http://api/health/detailed | jq '.phase'": '"(wake|sleep)"',
    "curl http://api/health/detailed | jq '.status, .version, .boot_id, .timestamp, .uptime_seconds'":
        r'"(un)?healthy"\n"[0-9.]+"\n"[0-9a-f]{32}"\n"20[^"]+"\n[0-9.]+',
    "curl http://api/health/detailed | jq '.rate_limiting | .enabled, .requests_per_second, .burst_capacity'":
        r"true\n5(\.0)?\n10",
    "curl http://api/health/detailed | jq '.system | add'": r"[0-9.e+]+",
    "curl http://api/health/detailed | jq .": r'\{\s+"status": .*\}',
    "curl http://api/health/detailed": r'\{"status":.*\}',
    "curl http://api/health/liveness": r'\{"status":"alive"\}',
    "curl http://api/health/readiness": r'\{"ready":(true|false),.*\}',
    "curl http://api/health/metrics | grep error_count": r"(.*\n)*error_count 0\.0",
}  # fmt: skip


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server as it is deployed: production, with a key."""
    environ = {**SMALL, "MLSDM_ENV": "production", "API_KEY": keys.API_KEY, "MLSDM_RESOURCES__DRAIN_PERIOD": "0"}
    server = LiveServer(tmp_path_factory.mktemp("production"), environ).start()
    yield server
    server.stop()


@needs("bash", "curl", "jq", "grep")
@pytest.mark.parametrize("line", RUNBOOK)
def test_the_runbooks_commands_print_what_it_shows(production: LiveServer, tmp_path: Path, line: str) -> None:
    """Pasted into a shell as it stands, with the server's address for `api`; a key is shown where the line has one."""
    (tmp_path / ".curlrc").write_text(f'connect-to = "api:80:127.0.0.1:{production.port}"\nno-progress-meter\n')
    variables = {"PATH": os.environ["PATH"], "CURL_HOME": str(tmp_path), "API_KEY": keys.API_KEY}

    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=variables,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(RUNBOOK[line], ran.stdout.strip(), re.DOTALL), ran.stdout


def _status_soon(server: LiveServer, path: str) -> int | None:
    connection = server.connect()
    connection.sock.settimeout(0.5)
    try:
        return server.request("GET", path, connection=connection).status
    except OSError:
        return None
    finally:
        connection.close()


# -- a block gone wrong ------------------------------------------------------------------------------------------------


@pytest.fixture
def formed() -> Iterator[Formed]:
    """A real block with its first state, used by this test alone."""
    block = Formed()
    yield block
    block.close()


def context_of(block: Block, now_ns: int, is_stopping: bool = False, health: Health | None = None) -> Context:
    """Return a worker's view of a block at one moment."""
    config = Config(
        dimension=SMALL_LAYOUT.dimension,
        capacity=SMALL_LAYOUT.capacity,
        log_capacity=SMALL_LAYOUT.log_capacity,
        health=health or Health(),
    )
    latency: Any = SimpleNamespace(mean_seconds=lambda: 0.0)  # nothing is counted
    store, recall = Store(block), Recall(block)
    return Context(config, store, recall, latency, lambda: now_ns, is_stopping=lambda: is_stopping, workers=1)


def beat(formed: Formed, **figures: float) -> int:
    """Write vitals as the controller does; returns the moment."""
    vitals = new_vitals()
    vitals.heartbeat_ns = now_ns = formed.boot_now()
    for name, value in figures.items():
        setattr(vitals, name, value)
    formed.store.write_vitals(formed.epoch, vitals)
    return now_ns


def failing(context: Context) -> dict[str, str | None]:
    """Return the reasons of the checks that do not hold."""
    return {name: check.reason for name, check in ReadinessResource(context).checks().items() if not check.healthy}


def metric_values(context: Context) -> dict[str, float]:
    """Return what a scrape says of the block, by family."""
    families = BlockCollector(context, ReadinessResource(context).is_ready).collect()
    return {family.name: family.samples[0].value for family in families}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"memory_percent": 94.9, "cpu_percent_30s": 97.9}, {}),
        ({"memory_percent": 95.0}, {"system_memory": "95.0% of memory is used; expected below 95"}),
        ({"cpu_percent_30s": 98.0}, {"system_cpu": "98.0% of the CPU allowance was used over 30 s; expected below 98"}),
        ({"cpu_percent": 100.0}, {}),
    ],
)
def test_readiness_fails_where_the_runbook_says(
    formed: Formed, figures: dict[str, float], expected: dict[str, str]
) -> None:
    """Memory from 95 %, CPU from 98 % over 30 s; a short burst of CPU is no reason."""
    now_ns = beat(formed, **figures)

    assert failing(context_of(formed.block, now_ns)) == expected


def test_readiness_misses_a_silent_controller(formed: Formed) -> None:
    """After two seconds without a heartbeat."""
    now_ns = beat(formed)

    assert failing(context_of(formed.block, now_ns + 1_999_999_999)) == {}
    assert failing(context_of(formed.block, now_ns + 2_500_000_000)) == {
        "controller": "2.5 s since the controller's last beat; expected below 2"
    }


def test_a_stopping_server_is_not_ready(formed: Formed) -> None:
    """Load balancers take it out while it still serves."""
    now_ns = beat(formed)

    assert set(failing(context_of(formed.block, now_ns, is_stopping=True))) == {"server"}


@pytest.mark.parametrize(
    ("figures", "late_ns", "is_stopping", "ready"),
    [
        ({"memory_percent": 50.0}, 0, False, 1),
        ({"cpu_percent_30s": 98.0}, 0, False, 1),
        ({"memory_percent": 95.0}, 0, False, 0),
        ({}, 2_500_000_000, False, 0),
        ({}, 0, True, 0),
    ],
)
def test_the_scrape_agrees_with_readiness(
    formed: Formed, figures: dict[str, float], late_ns: int, is_stopping: bool, ready: int
) -> None:
    """As a gauge, so that an alert sees what a probe sees."""
    context = context_of(formed.block, beat(formed, **figures) + late_ns, is_stopping)

    is_ready = ReadinessResource(context).is_ready()
    assert (ready, ready) == (metric_values(context)["mlsdm_ready"], int(is_ready))


@pytest.mark.parametrize("gates", [False, True])
def test_cpu_gates_readiness_if_configured(formed: Formed, gates: bool) -> None:
    """A busy machine may serve well; the check is visible in either case."""
    now_ns = beat(formed, cpu_percent_30s=98.0)
    readiness = ReadinessResource(context_of(formed.block, now_ns, health=Health(cpu_gates_readiness=gates)))

    assert readiness.checks()["system_cpu"].healthy is False
    assert readiness.is_ready() is not gates


def test_a_silent_worker_is_unready(formed: Formed) -> None:
    """Clients may be connected to it. The row of a dead worker does not count."""
    now_ns = beat(formed)
    row = formed.block.region("rows", 1)
    me = process.identify_self()
    row.pid, row.started, row.heartbeat_ns = me.pid, me.started, now_ns - 1_900_000_000
    context = context_of(formed.block, now_ns)
    assert failing(context) == {}

    row.heartbeat_ns = now_ns - 2_100_000_000
    assert failing(context) == {"workers": f"worker pid={me.pid} has been silent for 2.1 s"}
    row.started += 1
    assert failing(context) == {}


def test_an_unformed_store_is_not_ready_and_still_described() -> None:
    """The detailed document leaves out what cannot be known, and says why."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    block = Block.create(
        Layout(dimension=16, capacity=50, payload_size_max=64, log_capacity=4096, rows=4, receipt_capacity=16),
        BlockIdentity.new(),
        0,
        now_ns,
    )
    block.bind(os.getpid(), NO_ROW, 100, 1e6)
    context = context_of(block, now_ns)

    document: dict[str, Any] = msgspec.to_builtins(DetailedResource(context, ReadinessResource(context)).document())

    assert document["status"] == "unhealthy"
    assert document["checks"]["memory_manager"]["reason"] == "No controller has formed the first state yet."
    assert not {"memory_state", "phase", "statistics"} & set(document)
    del context
    block.close()


def test_liveness_and_its_gate_touch_nothing_that_is_shared(formed: Formed) -> None:
    """Without access to the shared memory liveness is still answered, while readiness would end the process."""
    context = context_of(formed.block, beat(formed))
    quotas = Quotas(formed.block, tiers(context.config), context.clock)
    context.charge = quotas.charge
    table = {"/livez": LivenessResource()}
    fast_path = FastPath(table, Gate([KeyAuthenticator(Keyring(keys.API_KEY))], quotas=quotas), None)

    def ask() -> None:
        _take_away(formed.block)
        begun: list[str] = []
        asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/livez", "REMOTE_ADDR": "192.0.2.1"}
        answer = fast_path(asked, lambda status, _headers: begun.append(status))  # type: ignore[arg-type]
        assert (list(answer), begun) == ([b'{"status":"alive"}'], ["200 OK"])

    def look() -> None:
        _take_away(formed.block)
        ReadinessResource(context).checks()

    assert (0, -signal.SIGSEGV) == (exit_of(begin(ask)), exit_of(begin(look)))


def _take_away(block: Block) -> None:
    """Make any further access to the block end this process."""
    faulthandler.disable()
    size = block.layout.block_size
    start = ctypes.addressof(ctypes.c_char.from_buffer(block.memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), PROT_NONE) == 0


def test_readiness_does_not_wait_for_the_lock(formed: Formed) -> None:
    """While another process holds the lock for ever, the answers are the same as if it were free."""
    context = context_of(formed.block, beat(formed))
    reading, writing = os.pipe()

    def hold() -> None:
        take_mutex(formed.block)
        os.write(writing, b"!")
        signal.pause()

    holder = begin(hold)
    assert os.read(reading, 1) == b"!"
    with pytest.raises(errors.Busy):
        formed.accept()

    document = DetailedResource(context, ReadinessResource(context)).document()

    assert failing(context) == {}
    assert metric_values(context)["mlsdm_ready"] == 1
    assert (document.status, document.phase) == ("healthy", "wake")
    end(holder)
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_corrupt_state_is_not_ready_and_the_rest_is_shown(formed: Formed) -> None:
    """Document and scrape still have everything that does not depend on the state."""

    context = context_of(formed.block, beat(formed, memory_percent=50.0))
    assert context.store.levels()
    levels, size = formed.region_bytes("levels")
    for at in range(levels, levels + size):
        formed.block.memory[at] ^= 1

    document = DetailedResource(context, ReadinessResource(context)).document()
    metrics = metric_values(context)

    assert list(failing(context)) == ["memory_manager"]
    assert (document.status, document.memory_state, document.system.memory_percent) == ("unhealthy", None, 50.0)
    assert (metrics["mlsdm_store_sound"], metrics["mlsdm_ready"]) == (0, 0)
    assert "mlsdm_lock_acquisitions" in metrics
