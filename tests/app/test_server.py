"""A server over its whole life: reloads, upgrades, deaths. Every test runs real processes and kills some."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from core.reference.governor import Governor
from core.reference.log_replay import replay
from core.reference.synapse import Synapse
from core.regime import Regime
from core.settings.config import Config
from loadtests.cost.bounded_memory import BOUND_MB, GROWTH_MB_MAX
from loadtests.cost.process_memory import footprint
from shm.block import find_blocks
from shm.layout import KINDS
from shm.store import Store
from testing import keys
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import Answer, LiveServer
from tests.conftest import Serve

RAW = {"Content-Type": "application/octet-stream", "Moral-Value": "0.95"}


def _random_events(count: int, dimension: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, dimension)).astype(np.float32)
    return vectors, random.random(count)


def _send_events(server: LiveServer, vectors: Any, morals: Any, decisions: list[dict[str, Any]]) -> None:
    connection = server.connect()
    for vector, moral in zip(vectors, morals, strict=True):
        decisions.append(server.event(vector, moral, connection))
    connection.close()


def _send_keyed_event(server: LiveServer, key: str) -> Answer:
    """POST an event that has an idempotency key."""
    return server.request("POST", "/event", np.ones(8, "<f4").tobytes(), {**RAW, "Idempotency-Key": key})


def _arbiter_pid(store: Store) -> int:
    return int(store.block.region("vitals").arbiter_pid)


def test_serial_decisions_equal_the_reference_event_by_event(serve: Serve) -> None:
    """One serial client from a fresh start sees exactly the reference model."""
    server = serve()
    vectors, morals = _random_events(500, 8, 1)
    decisions: list[dict[str, Any]] = []

    _send_events(server, vectors, morals, decisions)

    settings = Regime.of(Config()).governor
    model = Governor.initial(settings)
    for number, (moral, decision) in enumerate(zip(morals, decisions, strict=True), 1):
        before = model.theta
        accepted, model = model.decide(float(moral), settings)
        expected = (number, accepted, before, model.theta, model.ema)
        seen = tuple(
            decision[name] for name in ("sequence", "accepted", "threshold_before", "moral_filter_threshold", "ema")
        )
        assert seen == expected


def test_concurrent_history_is_linear_and_replays_to_the_live_state(serve: Serve) -> None:
    """Eight clients on two workers get one sequence without gaps, exact counters, and a log that replays."""
    server = serve(MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS="0.05")
    batches = [_random_events(250, 8, seed) for seed in range(8)]
    decisions: list[dict[str, Any]] = []

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for work in [pool.submit(_send_events, server, *batch, decisions) for batch in batches]:
            work.result()

    assert sorted(decision["sequence"] for decision in decisions) == list(range(1, 2001))
    store = server.store()
    accepted, rejected, _ = store.tallies()
    state = server.state()
    assert (state["accepted_events_count"], state["latent_events_count"]) == (accepted, rejected)
    assert state["total_events_processed"] == accepted + rejected == 2000
    sent = {(np.float32(vector).tobytes()): vector for vectors, _ in batches for vector in vectors}
    state_record, _ = store.levels()
    newest = int(state_record.position)
    log = [entry for entry in store.entries(1, newest)[0] if entry.position <= newest]
    model = replay(
        log,
        Regime.of_record(state_record.settings),
        Synapse.initial(8),
        lambda memory_id: sent[store.memory(memory_id).vector],
    )
    assert model.governor.theta == state_record.scalars.theta
    assert (model.accepted, model.rejected) == (accepted, rejected)
    assert model.levels is not None
    padded = np.frombuffer(store.level_bytes(), np.float32).reshape(3, -1)[:, :8]
    assert padded.tobytes() == np.stack(model.levels).astype(np.float32).tobytes()


def test_connections_spread_over_the_workers(serve: Serve) -> None:
    """Of 32 connections no worker gets more than twice its share."""
    server = serve()
    connections = [server.connect() for _ in range(32)]
    for connection in connections:
        server.request("GET", "/health/liveness", connection=connection)

    block = server.block()
    counts = [int(block.region("rows", number).connections) for number in range(block.layout.rows)]

    assert sum(counts) >= 32
    assert max(counts) <= 24, counts
    for connection in connections:
        connection.close()


def test_reload_keeps_every_memory_and_applies_the_new_settings(serve: Serve, tmp_path: Path) -> None:
    """HUP changes the governor at a position of the log, fails no request and loses no memory."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("moral_filter: {ema_alpha: 0.1}\n")
    server = serve(CONFIG_PATH=str(path))
    assert server.log.count(f"Configuration loaded from {path}") == 1
    answer = _send_keyed_event(server, "before-the-reload")
    vectors, _ = _random_events(400, 8, 2)
    decisions: list[dict[str, Any]] = []
    failures: list[BaseException] = []

    def client() -> None:
        try:
            decisions.extend(server.event(vector, 0.95) for vector in vectors)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test reports it
            failures.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    path.write_text("moral_filter: {ema_alpha: 0.2}\n")
    os.kill(server.pid, signal.SIGHUP)
    thread.join(HANG_SECONDS)

    store = server.store()
    eventually(lambda: store.state().settings.ema_alpha == 0.2)
    assert failures == []
    assert server.log.count(f"Configuration loaded from {path}") == 2
    assert [decision["memory_id"] for decision in decisions] == list(range(2, 402))
    assert store.memory(2).vector == vectors[0].tobytes()
    eventually(lambda: server.log.count("serves from row") == 4)
    assert _send_keyed_event(server, "before-the-reload").body == answer.body
    newest = int(store.state().position)
    kinds = [KINDS[entry.kind] for entry in store.entries(1, newest)[0]]
    assert kinds.count("configure") == 1
    assert kinds.count("start") == 1


def test_reload_changes_how_the_controller_logs(serve: Serve, tmp_path: Path) -> None:
    """The controller logs in the new format, too; the others see a new epoch and nothing else."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("observability: {logging: {format: text}}\n")
    server = serve(CONFIG_PATH=str(path))
    store = server.store()

    path.write_text("observability: {logging: {format: json}}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: store.block.epoch == 2)
    assert server.request("POST", "/governor/reset").status == 200

    lines = eventually(lambda: [line for line in server.log.splitlines() if "carried out reset" in line])
    assert [json.loads(line)["logger"] for line in lines] == ["mlsdm.controller"]
    assert "died" not in server.log


def test_reload_with_a_broken_configuration_keeps_everything(serve: Serve, tmp_path: Path) -> None:
    """HUP with problems logs all of them at once, keeps settings and memories, and serves on."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("capacity: 1000\n")
    server = serve(CONFIG_PATH=str(path), MLSDM_CAPACITY="1000")
    server.event(np.ones(8), 0.95)
    path.write_text("moral_filter: {ema_alpha: 7}\ncognitive_rhythm: {wake_duration: no}\nunknown: 1\n")

    os.kill(server.pid, signal.SIGHUP)

    eventually(lambda: "the old one stays" in server.log)
    for key in ("moral_filter.ema_alpha", "cognitive_rhythm.wake_duration", "unknown"):
        assert key in server.log
    assert server.event(np.ones(8), 0.95)["memory_id"] == 2
    assert server.store().state().settings.ema_alpha == 0.1


def test_reload_with_another_layout_keeps_everything(serve: Serve, tmp_path: Path) -> None:
    """HUP cannot change the layout of the block: it is logged, and the memories stay."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("payload_size_max: 64\n")
    server = serve(CONFIG_PATH=str(path))
    server.event(np.ones(8), 0.95)
    path.write_text("payload_size_max: 128\n")

    os.kill(server.pid, signal.SIGHUP)

    eventually(lambda: "payload_size_max cannot change from 64 to 128" in server.log)
    assert server.get("/memories/1").status == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_controller_is_respawned_and_loses_nothing(serve: Serve, number: signal.Signals) -> None:
    """Admissions continue while it is dead; its successor continues the rhythm under a new epoch."""
    server = serve(MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS="0.05")
    store = server.store()
    answer = _send_keyed_event(server, "before-the-death")
    first, step = server.controller(store.block), int(store.state().scalars.step)

    os.kill(first, number)
    again = _send_keyed_event(server, "before-the-death")
    decision = server.event(np.ones(8), 0.95)

    assert again.body == answer.body
    assert decision["memory_id"] == 2
    eventually(lambda: server.controller(store.block) != first)
    eventually(lambda: store.state().scalars.step > step + 2)
    assert store.block.epoch == 2
    assert server.get("/health/readiness").json["checks"]["controller"]["healthy"]


def test_a_stopped_controller_is_replaced(serve: Serve) -> None:
    """The arbiter kills a controller that is alive but silent, and respawns it."""
    server = serve()
    store = server.store()
    first = server.controller(store.block)

    os.kill(first, signal.SIGSTOP)

    eventually(lambda: server.controller(store.block) != first)
    assert not psutil.pid_exists(first)


def test_a_killed_worker_is_replaced_and_its_row_continues(serve: Serve) -> None:
    """SIGKILL of a worker loses no memory; its successor takes the row and continues its counts."""
    server = serve(WORKERS="1")
    for _ in range(10):
        server.event(np.ones(8), 0.95)
    block = server.block()
    [worker] = server.workers(block)

    os.kill(worker, signal.SIGKILL)

    eventually(lambda: server.workers(block) not in ([worker], []))
    eventually(lambda: server.get("/livez").status == 200)
    server.event(np.ones(8), 0.95)
    assert Store(block).tallies()[:2] == (11, 0)
    assert server.state()["accepted_events_count"] == 11


_HOLD = """
import ctypes, mmap, os, signal, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(descriptor, 0)
lock = ctypes.c_char.from_buffer(memory, int(sys.argv[2]))
assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.byref(lock)) == 0
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("frozen_controller", [False, True])
def test_a_stopped_lock_holder_is_removed(serve: Serve, frozen_controller: bool) -> None:
    """The controller or a worker kills a process that was stopped inside the section; liveness is answered."""
    server = serve()
    block = server.block()
    if frozen_controller:
        os.kill(server.controller(block), signal.SIGSTOP)
    [lock] = [region for region in block.layout.regions() if region.name == "lock"]
    [(_, link)] = find_blocks(server.pid)
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(link), str(lock.offset)])
    eventually(lambda: block.mutex_owner() == holder.pid)

    answers: list[Answer] = []

    def served() -> bool:
        answers.append(server.request("POST", "/event", np.ones(8, "<f4").tobytes(), RAW))
        assert answers[-1].status in (200, 503)
        assert server.get("/livez").status == 200
        return answers[-1].status == 200

    eventually(served)

    assert {answer.json["code"] for answer in answers[:-1]} <= {"store_busy"}
    assert all(answer.headers["retry-after"] == "1" for answer in answers[:-1])
    assert holder.wait(HANG_SECONDS) == -signal.SIGKILL
    assert answers[-1].json["memory_id"] == 1
    assert "removed stuck lock holder" in server.log


def test_batch_enters_lock_backoff_after_timeout(serve: Serve) -> None:
    """A holder stops in the middle of a batch: the answer holds what was decided, and the worker stops waiting for the
    lock, as after any other request.
    """
    server = serve(WORKERS="1", MLSDM_DIMENSION="2048", MLSDM_CAPACITY="100")
    lock = next(region for region in server.block().layout.regions() if region.name == "lock")
    [(_, link)] = find_blocks(server.pid)
    body = np.full(1000, 0.95).tobytes() + np.ones((1000, 2048), "<f4").tobytes()
    connection = server.connect()

    def interrupt_batch() -> int:
        """Stop a holder while batches run; returns how many events of the last one were decided."""
        before = server.log.count("switching to try-lock")
        with subprocess.Popen([sys.executable, "-c", _HOLD, str(link), str(lock.offset)]) as holder:
            answer = server.request("POST", "/events", body, RAW, connection)
            while answer.status == 200 and holder.poll() is None:
                answer = server.request("POST", "/events", body, RAW, connection)
            assert holder.wait(HANG_SECONDS) == -signal.SIGKILL
        if answer.status == 200:  # it was stopped and killed between two batches
            return 0
        eventually(
            lambda: [server.log.count(words) for words in ("switching to try-lock", "moves again")] == [before + 1] * 2
        )
        return len(answer.json["results"]) if answer.json["code"] == "batch_interrupted" else 0

    assert eventually(interrupt_batch)
    connection.close()


def test_an_upgrade_keeps_every_memory(serve: Serve) -> None:
    """USR2 starts a new arbiter on the same block: one controller, one boot id, and the old arbiter may leave. Receipts
    of keyed events and settings that were changed at run time are kept as well.
    """
    server = serve()
    store = server.store()
    answer = _send_keyed_event(server, "before-the-upgrade")
    change = {"Content-Type": "application/json"}, b'{"moral_filter": {"dead_band": 0.2}}'
    governor = server.request("PATCH", "/governor", change[1], change[0]).json["moral_filter"]
    boot_id, first = server.state()["boot_id"], server.controller(store.block)
    assert server.process is not None

    os.kill(server.pid, signal.SIGUSR2)
    eventually(lambda: server.controller(store.block) != first)
    eventually(lambda: not psutil.pid_exists(first))
    new = _arbiter_pid(store)
    eventually(lambda: server.log.count("serves from row") == 4)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(HANG_SECONDS) == 0

    try:
        eventually(lambda: server.get("/health/readiness").json["checks"]["controller"]["healthy"])
        assert server.state()["boot_id"] == boot_id
        assert _send_keyed_event(server, "before-the-upgrade").body == answer.body
        assert server.get("/governor").json["moral_filter"] == governor
        assert governor["dead_band"] == 0.2
        assert server.event(np.ones(8), 0.95)["memory_id"] == 2
        assert server.get("/memories/1").status == 200
        time.sleep(1.5)  # a superseded controller's arbiter looks once a second
        assert store.block.epoch == 2
    finally:
        os.kill(new, signal.SIGTERM)
        eventually(lambda: not psutil.pid_exists(new))
        server.process = None


def test_an_upgrade_that_is_taken_back_keeps_everything(serve: Serve, tmp_path: Path) -> None:
    """When the new arbiter ends, the old one takes the controller back with its settings and can start workers."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("moral_filter: {adaptation_rate: 0.05}\n")
    server = serve(CONFIG_PATH=str(path))
    store = server.store()
    server.event(np.ones(8), 0.95)
    path.write_text("moral_filter: {adaptation_rate: 0.02}\n")

    os.kill(server.pid, signal.SIGUSR2)
    eventually(lambda: store.state().settings.adaptation_rate == 0.02)
    eventually(lambda: server.log.count("serves from row") == 4)
    new = int(eventually(lambda: _arbiter_pid(store) != server.pid and _arbiter_pid(store)))
    os.kill(new, signal.SIGTERM)
    eventually(lambda: store.state().settings.adaptation_rate == 0.05)
    for worker in psutil.Process(server.pid).children():
        if worker.pid in server.workers(store.block):
            worker.kill()

    eventually(lambda: server.log.count("serves from row") == 6)
    assert server.event(np.ones(8), 0.95)["memory_id"] == 2
    assert server.get("/memories/1").status == 200
    assert server.get("/metrics").status == 200


def test_an_upgrade_does_not_open_a_server_that_has_keys(serve: Serve, tmp_path: Path) -> None:
    """A file that was emptied is valid: the next arbiter ends and says why, and the old one serves on."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text(f"security: {{keys_path: {keys.write(tmp_path / 'keys.yaml')}}}\n")
    server = serve(CONFIG_PATH=str(path))
    path.write_text("")

    os.kill(server.pid, signal.SIGUSR2)
    eventually(lambda: "mlsdm cannot start: " in server.log)

    assert "security.keys_path is empty: expected the path of a YAML file of keys" in server.log
    assert server.get("/state").status == 401
    assert server.get("/state", **keys.bearer("reader")).status == 200


def test_more_workers_than_rows_are_not_started(serve: Serve) -> None:
    """TTIN beyond the rows of the block is logged, and the present workers serve on."""
    server = serve(WORKERS="1")

    def refused() -> bool:
        return "hold all rows of the block" in server.log

    while not refused():
        handled = server.log.count("Handling signal: ttin")
        os.kill(server.pid, signal.SIGTTIN)
        eventually(lambda handled=handled: server.log.count("Handling signal: ttin") > handled)  # type: ignore[misc]
        eventually(lambda: refused() or server.log.count("Booting worker") == server.log.count("serves from row"))

    assert server.event(np.ones(8), 0.95)["memory_id"] == 1
    assert "Traceback" not in server.log


def test_a_killed_arbiter_leaves_no_orphan(serve: Serve) -> None:
    """SIGKILL of the arbiter takes workers and controller with it, and the memory with them."""
    server = serve()
    children = psutil.Process(server.pid).children(recursive=True)
    assert server.process is not None

    server.process.kill()
    server.process.wait(HANG_SECONDS)

    _, alive = psutil.wait_procs(children, timeout=HANG_SECONDS)
    assert alive == []
    server.process = None


def test_interrupt_ends_with_status_0_and_no_traceback(serve: Serve) -> None:
    """Ctrl-C reaches the whole group of a terminal; the server ends normally."""
    server = serve()
    children = psutil.Process(server.pid).children(recursive=True)
    assert server.process is not None

    os.killpg(server.pid, signal.SIGINT)

    assert server.process.wait(HANG_SECONDS) == 0
    assert "Traceback" not in server.log
    _, alive = psutil.wait_procs(children, timeout=HANG_SECONDS)
    assert alive == []
    server.process = None


def test_a_stopping_server_is_unready_for_the_drain_period(serve: Serve) -> None:
    """After SIGTERM it serves on for that long, then ends. On a busy machine the questions take a longer period."""

    def serves_on(seconds: int) -> bool:
        server = serve(MLSDM_RESOURCES__DRAIN_PERIOD=str(seconds))
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        try:
            eventually(lambda: server.get("/health/readiness").status == 503)
            assert "is stopping" in server.get("/readyz").json["checks"]["server"]["reason"]
            assert server.get("/livez").status == 200
            assert server.event(np.ones(8), 0.95)["memory_id"] == 1
        except OSError:  # the period was over
            return False
        finally:
            assert server.process.wait(HANG_SECONDS) == 0
        return True

    assert any(serves_on(seconds) for seconds in (2, 10, 60))


def test_memory_of_the_service_is_bounded(serve: Serve) -> None:
    """Two workers at 20,000 × 384, filled by the largest batches, 1.5 MB each: under the bound, and no more after 32 MB
    of events.
    """
    server = serve(MLSDM_DIMENSION="384", MLSDM_CAPACITY="20000", MLSDM_COGNITIVE_RHYTHM__CYCLE_SECONDS="1")
    random = np.random.default_rng(3)

    def send(batches: int) -> None:
        for _ in range(batches):
            vectors = random.standard_normal((1000, 384)).astype("<f4")
            body = np.full(1000, 0.95).astype("<f8").tobytes() + vectors.tobytes()
            answer = server.request("POST", "/events", body, {"Content-Type": "application/octet-stream"})
            assert answer.status == 200

    send(42)  # full, and both workers have grown their buffers to the largest batch
    filled = eventually(lambda: (now := footprint(server.pid).total) < BOUND_MB and now)  # what is free goes back
    send(21)

    assert server.state()["memory_used"] == 20000
    eventually(lambda: footprint(server.pid).total < filled + GROWTH_MB_MAX)
