"""`mlsdm stat` against real servers, and against blocks in states that a healthy server never shows."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from core.clock import boot_clock
from core.controller.emergency import REMEDIES, SENTENCES
from core.controller.threshold_drift import BITS
from core.regime import Regime
from core.settings.config import Config
from mlsdm.block_snapshot import take_snapshot
from mlsdm.commands.stat import _duration_text, add_arguments, run, to_lines
from shm import process
from shm.block import Block, BlockIdentity
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY, LOST, Layout
from shm.store import Store
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, LiveServer

Serve = Callable[..., LiveServer]


def stat(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


def watch(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlsdm", "stat", *(str(word) for word in words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- a live server ---------------------------------------------------------------------------------------------------


def test_the_snapshot_equals_the_state_of_the_server(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """It has every number of GET /state and the rest of the block; the rhythm steps by events, so it stands still."""
    server = serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events")
    for moral in np.random.default_rng(1).uniform(size=50):
        server.event(np.ones(8), moral)
    eventually(lambda: len(server.workers(server.block())) == 2)

    assert stat("--pid", server.pid, "--json") == 0

    seen, said = json.loads(capsys.readouterr().out), server.state()
    state = seen["state"]
    expected = {
        "total": said["total_events_processed"],
        "accepted": said["accepted_events_count"],
        "rejected": said["latent_events_count"],
        "memories": said["memory_used"],
        "threshold": said["moral_filter_threshold"],
        "ema": said["ema"],
        "phase": said["current_phase"],
        "step": said["step"],
        "position": said["position"],
        "level_norms": [said["L1_norm"], said["L2_norm"], said["L3_norm"]],
        "log_oldest": 1,
        "stopped": False,
        "threshold_min": 0.3,
        "threshold_max": 0.9,
    }
    assert {"events": 50, "accepted": said["accepted_events_count"]}.items() <= state["recent"].items()
    assert {name: state[name] for name in expected} == expected
    assert (said["boot_id"], said["log_id"]) == (seen["boot_id"], seen["log_id"])
    assert (said["dimension"], said["capacity"]) == (seen["sizes"]["dimension"], seen["sizes"]["capacity"])
    assert (seen["controller"]["alive"], seen["controller"]["arbiter_alive"]) == (True, True)
    assert server.pid == seen["controller"]["arbiter_pid"]
    assert [worker["alive"] for worker in seen["workers"]] == [True, True]
    assert len(server.workers(server.block())) == len(seen["workers"])
    assert seen["lock"]["acquisitions"] >= 50


def test_the_text_names_what_an_operator_looks_for(
    small_server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """--pid accepts any process of the server, here a worker."""
    worker = eventually(lambda: small_server.workers(small_server.block()))[0]

    stat("--pid", worker)  # with the status that the tests before have left

    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if not line.startswith(" ")]
    expected = """
        status boot slots events recent threshold phase levels log epoch controller machine lock workers reload
        processes
    """
    assert expected.split() == named
    assert any(f": pid {worker}, " in line for line in lines)


def test_each_snapshot_under_load_is_of_one_position(
    small_server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Total = accepted + rejected in each, and no counter runs backwards."""
    ended = threading.Event()

    def send() -> None:
        connection = small_server.connect()
        vectors = np.ones((100, 8), "<f4").tobytes()
        body = np.random.default_rng(2).uniform(size=100).astype("<f8").tobytes() + vectors
        headers = {"Content-Type": "application/octet-stream", "Event-Count": "100"}
        while not ended.is_set():
            assert small_server.request("POST", "/events", body, headers, connection).status == 200
        connection.close()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        states = []
        for _ in range(20):
            assert stat("--pid", small_server.pid, "--json") == 0
            states.append(json.loads(capsys.readouterr().out)["state"])
    finally:
        ended.set()
        sender.join()

    assert all(state["total"] == state["accepted"] + state["rejected"] for state in states)
    assert sorted(state["position"] for state in states) == [state["position"] for state in states]
    assert states[0]["total"] < states[-1]["total"]


def test_watch_prints_one_json_object_per_line_until_ctrl_c(small_server: LiveServer) -> None:
    """Ctrl-C is the normal end, with status 0."""
    with watch("--pid", small_server.pid, "--json", "--watch", "0.1") as watching:
        assert watching.stdout is not None
        boots = [json.loads(watching.stdout.readline())["boot_id"] for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=HANG_SECONDS)

    assert boots == [small_server.state()["boot_id"]] * 3
    assert (watching.returncode, err) == (0, "")


def test_watch_ends_with_the_server(serve: Serve) -> None:
    """The observer's mapping keeps the memory alive; the watch ends all the same."""
    server = serve()
    pid = server.pid
    with watch("--pid", pid, "--json", "--watch", "0.1") as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        server.stop()
        _, err = watching.communicate(timeout=HANG_SECONDS)

    assert (1, f"mlsdm stat: the server of process {pid} has ended\n") == (watching.returncode, err)


def test_several_servers_are_listed(serve: Serve, small_server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """It asks for --pid, with status 1."""
    other = serve()

    assert stat() == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlsdm stat: several servers run; choose one with --pid:\n")
    for server in (other, small_server):
        assert f"  --pid {server.pid}: boot {server.state()['boot_id'][:8]}, " in err


def test_a_refused_reload_is_a_problem_with_status_1(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The next one that succeeds ends it; the counts stay."""
    file = tmp_path / "config.yaml"
    file.write_text("health: {cpu_gates_readiness: false}\n")
    server = serve(CONFIG_PATH=str(file))

    def lines_of(status: int) -> list[str]:
        assert stat("--pid", server.pid) == status
        return [line for line in capsys.readouterr().out.splitlines() if "reload" in line.lower()]

    def reload(text: str, result: str) -> None:
        file.write_text(text)
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: server.log.count(result) == 1)

    [line] = lines_of(0)
    assert line.startswith("reload      none since the start ")
    reload("health: {cpu_gates_readiness: perhaps}\n", "configuration not reloaded")
    problem, line = eventually(lambda: len(lines := lines_of(1)) == 2 and lines)
    reason = "was refused: the configuration or the keys file has problems, and the old ones stay"
    assert problem.startswith("status      NOT RELOADED: the last, ")
    assert problem.endswith(f" ago, {reason}; the log says why")
    assert line.endswith(f" ago, {reason} (1 refused)")

    file.write_text("health: {cpu_gates_readiness: true}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: "succeeded (1 succeeded, 1 refused)" in "".join(lines_of_any(server, capsys)))
    assert len(lines_of(0)) == 1


def lines_of_any(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of a snapshot, whatever its status."""
    stat("--pid", server.pid)
    return capsys.readouterr().out.splitlines()


def test_a_bound_that_rejects_everything_is_a_problem(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """It is none while few events were decided, and ends with the first event that is accepted."""
    bound = {"MLSDM_MORAL_FILTER__MIN_THRESHOLD": "0.85", "MLSDM_MORAL_FILTER__INITIAL_THRESHOLD": "0.85"}
    server = serve(**bound)

    def send(moral: float, count: int) -> None:
        for _ in range(count):
            server.event(np.ones(8), moral)

    def is_seen() -> bool:
        stat("--pid", server.pid)
        return "REJECTING" in capsys.readouterr().out

    send(0.8, 19)
    assert not is_seen()
    send(0.8, 1)
    assert stat("--pid", server.pid) == 1
    out = capsys.readouterr().out
    assert stat("--pid", server.pid, "--json") == 0  # a pipe to jq goes on
    assert json.loads(capsys.readouterr().out)["problems"] == [out.splitlines()[0].removeprefix("status      ")]
    assert out.startswith(
        "status      REJECTING: none of the last 20 events was accepted; the threshold is 0.85, its lower bound: "
        "look at the moral values, or PATCH /governor with a lower min_threshold\n"
    )
    assert "\nrecent      0 of the last 20 events accepted (0%), within " in out
    assert "\nthreshold   0.85, from 0.85 to 0.9; EMA " in out
    send(1.0, 1)
    assert not is_seen()


def test_each_process_has_its_cpu_and_memory(small_server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, the controller once; the sum of the memory is that of the server."""
    assert stat("--pid", small_server.pid, "--json") == 0

    processes = json.loads(capsys.readouterr().out)["processes"]
    children = psutil.Process(small_server.pid).children()
    assert {one["pid"] for one in processes} == {small_server.pid, *(child.pid for child in children)}
    assert sorted(one["part"] for one in processes)[:2] == ["arbiter", "controller"]
    assert sum(one["part"].startswith("worker ") for one in processes) == 2
    assert all(one["memory_bytes"] > 1e6 and one["cpu_percent"] >= 0 for one in processes)


# -- nothing to see --------------------------------------------------------------------------------------------------


def test_a_missing_process_and_a_foreign_process_are_one_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    """Each sentence gives the reason."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger:
        assert stat("--pid", stranger.pid) == 1
        stranger.communicate()

    sentences = [capsys.readouterr().err]
    assert stat("--pid", stranger.pid) == 1
    sentences.append(capsys.readouterr().err)
    assert sentences == [
        f"mlsdm stat: process {stranger.pid} does not belong to an mlsdm server: it maps no block\n",
        f"mlsdm stat: there is no process {stranger.pid}\n",
    ]


@pytest.mark.parametrize("words", [("--pid", "0"), ("--pid", "x"), ("--watch", "0"), ("--watch", "nan")])
def test_numbers_out_of_range_are_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse refuses them with status 2."""
    with pytest.raises(SystemExit) as exit_:
        stat(*words)

    assert exit_.value.code == 2
    assert f"argument {words[0]}: '{words[1]}': expected " in capsys.readouterr().err


# -- blocks in other states ------------------------------------------------------------------------------------------


@pytest.fixture
def block() -> Block:
    """A block of this process that nobody has formed."""
    return Block.create(
        Layout(8, 100, 64, 1024, 2, 16),
        BlockIdentity(bytes(range(16)), bytes(range(16, 32)), bytes(16)),
        time.time_ns(),
        boot_clock(),
    )


def formed(block: Block) -> Block:
    """Form the first state, as a controller would."""
    block.bind(os.getpid(), 0, 40, 1e6)
    Store(block).begin_epoch(block.log_time(boot_clock()), Regime.of(Config()).to_record())
    return block


def holder(block: Block) -> "subprocess.Popen[bytes]":
    """Start a process that does nothing but hold the block."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[block.fd])


def test_a_block_without_a_first_state_is_reported(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is printed all the same; the status is 1."""
    with holder(block) as held:
        assert stat("--pid", held.pid) == 1
        held.communicate()

    out, err = capsys.readouterr()
    assert err == ""
    assert "\nstate       cannot be read, unformed: No controller has formed the first state yet.\n" in out
    assert "\ncontroller  none has begun yet\n" in out
    assert "\nworkers     0 of 2 rows\n" in out


def test_a_corrupt_state_is_reported(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of a state whose checksum does not hold is printed."""
    formed(block)
    for number in range(2):
        block.region("states", number).checksum ^= 1

    with holder(block) as held:
        assert stat("--pid", held.pid) == 1
        held.communicate()

    assert "\nstate       cannot be read, corrupt: A checksum does not match" in capsys.readouterr().out


def test_a_damaged_header_is_one_sentence(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """The block is not mapped."""
    block.region("header").capacity += 1

    with holder(block) as held:
        assert stat("--pid", held.pid) == 1
        held.communicate()

    reason = "the header of the block is damaged: its checksum does not match"
    assert capsys.readouterr() == ("", f"mlsdm stat: the block of process {held.pid} cannot be read ({reason})\n")


def problem_lines_of(block: Block, seconds: float = 0.0) -> list[str]:
    """Return the lines that say what is wrong, to one who looks `seconds` from now."""
    lines = list(to_lines(take_snapshot(block, boot_clock() + int(seconds * 1e9), foreign=False)))
    return [line[12:] for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("boot "))]]


def controlled(block: Block) -> Any:
    """Sign the vitals as a controller that has just beaten; returns them."""
    vitals = formed(block).region("vitals")
    vitals.controller_pid, vitals.controller_started = vitals.arbiter_pid, vitals.arbiter_started = (
        process.identify_self()
    )
    vitals.heartbeat_ns = boot_clock()
    return vitals


def test_a_healthy_server_has_one_status_line(block: Block) -> None:
    """The first line says that nothing is wrong."""
    controlled(block)

    assert problem_lines_of(block) == ["nothing is wrong, as far as can be seen from here"]


def test_an_emergency_comes_first(block: Block) -> None:
    """Each reason has its remedy and its age; overruled reasons are listed."""
    vitals = controlled(block)
    vitals.emergency, vitals.emergency_overruled = EMERGENCY_CORRUPT | EMERGENCY_LOST, EMERGENCY_MEMORY
    vitals.emergency_since_ns = block.log_time(boot_clock()) - 90 * 10**9
    vitals.emergency_episodes = 3

    assert problem_lines_of(block) == [
        "EMERGENCY for 1 min 30 s: events are refused",
        f"  corrupt: {SENTENCES[EMERGENCY_CORRUPT]}; {REMEDIES[EMERGENCY_CORRUPT]}",
        "  lock: the lock is beyond repair; restart the server",
        "OVERRULED by an operator, memory: memory is nearly full, and events are decided",
    ]
    document = take_snapshot(block, boot_clock(), foreign=False).emergency
    assert (document.reasons, document.overruled, document.episodes) == (["corrupt", "lock"], ["memory"], 3)
    assert document.since_seconds is not None
    assert 90 <= document.since_seconds < 900


def test_other_problems_come_first_too(block: Block) -> None:
    """An operator's stop, a lost lock without an emergency, silent processes, drift."""
    vitals = controlled(block)
    store = Store(block)
    store.post_command("stop")
    store.apply_command(block.log_time(boot_clock()), 1)
    block.region("lock").lost = LOST
    vitals.drift = BITS["at_maximum"] | BITS["mean_moved"]
    row = block.region("rows", 1)
    row.pid, row.started = process.identify_self()
    row.heartbeat_ns = boot_clock()

    assert problem_lines_of(block, 90.2) == [
        "STOPPED by an operator: events are refused; POST /governor/resume",
        "LOST: the lock is beyond repair; restart the server",
        "SILENT: the controller, for 1 min 30 s",
        f"SILENT: workers {os.getpid()}",
        "DRIFT: the threshold sits at its maximum and cannot rise further",
        "DRIFT: the threshold's ten-minute mean has moved",
    ]


def test_a_problem_is_status_1(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is: here a worker whose loop does not run."""
    vitals, row = controlled(block), block.region("rows", 1)
    row.pid, row.started = process.identify_self()
    row.heartbeat_ns = vitals.heartbeat_ns = boot_clock() + 3_600 * 10**9  # no machine is too slow for that

    with holder(block) as held:
        assert stat("--pid", held.pid) == 0
        row.heartbeat_ns = boot_clock() - 10 * 10**9
        capsys.readouterr()
        assert stat("--pid", held.pid) == 1
        held.communicate()

    assert capsys.readouterr().out.startswith(f"status      SILENT: workers {os.getpid()}\n")


def test_dead_processes_come_first(block: Block) -> None:
    """One dead worker among living ones is no problem: its row waits for a successor."""
    vitals = controlled(block)
    vitals.controller_started += 1
    vitals.arbiter_started += 1
    row = block.region("rows", 1)
    row.pid, row.started = os.getpid(), 1
    row.heartbeat_ns = boot_clock()

    assert problem_lines_of(block) == [
        "NO CONTROLLER: it has died, and should be back within a second",
        "NO ARBITER: nobody replaces what dies; its memory ends with the last process",
        "NO WORKER: nobody serves",
    ]
    other = block.region("rows", 0)
    other.pid, other.started = process.identify_self()
    other.heartbeat_ns = boot_clock()
    assert "NO WORKER: nobody serves" not in problem_lines_of(block)


def test_a_stopped_arbiter_is_a_problem(block: Block) -> None:
    """Workers serve, and their heartbeats show nothing."""
    vitals = controlled(block)
    with holder(block) as arbiter:
        vitals.arbiter_pid, vitals.arbiter_started = process.identify(arbiter.pid)
        vitals.heartbeat_ns = boot_clock() + 3_600 * 10**9  # no machine is too slow for that
        arbiter.send_signal(signal.SIGSTOP)
        eventually(lambda: process.state_of(arbiter.pid) == "T")
        lines = problem_lines_of(block)
        arbiter.send_signal(signal.SIGCONT)
        arbiter.communicate()

    remedy = f"kill -CONT {arbiter.pid}, or detach its debugger"
    assert lines == [f"ARBITER STOPPED: nobody replaces what dies, and no reload or stop is carried out; {remedy}"]


def test_an_unreadable_state_comes_first(block: Block) -> None:
    """The line has the reason that the store gives."""
    controlled(block)
    for number in range(2):
        block.region("states", number).checksum ^= 1

    assert problem_lines_of(block) == ["UNREADABLE: corrupt: A checksum does not match; the data was not used."]


def test_the_mutex_names_the_lock_holder(block: Block) -> None:
    """The futex word holds a thread id; the process of that thread is shown even before it writes `holder`."""
    block.region("lock").mutex[0] = threading.get_native_id()

    assert os.getpid() == take_snapshot(block, boot_clock(), foreign=False).lock.holder_pid


def test_a_reused_pid_is_not_alive(block: Block) -> None:
    """A process is alive only with its start time, and unknown in another namespace."""
    row = block.region("rows", 1)
    row.pid, row.started = process.identify_self()

    assert take_snapshot(block, boot_clock(), foreign=False).workers[0].alive is True
    assert take_snapshot(block, boot_clock(), foreign=True).workers[0].alive is None
    row.started += 1
    assert take_snapshot(block, boot_clock(), foreign=False).workers[0].alive is False
    assert any(line.endswith(" ago") and " DEAD, " in line for line in to_lines(take_snapshot(block, 0, foreign=False)))


def test_a_block_whose_processes_have_all_ended_is_abandoned(block: Block) -> None:
    """A block without a first controller is not abandoned: it is being started."""
    assert take_snapshot(block, 0, foreign=False).abandoned is False

    vitals = block.region("vitals")
    vitals.controller_pid, vitals.controller_started = process.identify_self()
    assert take_snapshot(block, 0, foreign=False).abandoned is False

    vitals.controller_started += 1
    assert take_snapshot(block, 0, foreign=False).abandoned is True


def test_a_snapshot_changes_nothing(block: Block) -> None:
    """Every byte of the block is the same, and the lock was not taken."""
    before = formed(block).memory[:]
    descriptor = os.open(Path(f"/proc/self/fd/{block.fd}"), os.O_RDONLY)

    take_snapshot(Block.open(descriptor, writable=False), boot_clock(), foreign=False)

    os.close(descriptor)
    assert before == block.memory[:]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3_725, "1 h 2 min"), (277_200, "3 d 5 h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    """Below a minute it has seconds with one decimal."""
    assert text == _duration_text(seconds)


def test_the_json_names_are_stable(small_server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    """They are an interface for programs."""
    stat("--pid", small_server.pid, "--json")

    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    members = [*document, *document["lock"], *document["workers"][0], *document["arbiter"],
               *document["processes"][0]]  # fmt: skip
    expected = """
        boot_id log_id age_seconds layout_version sizes state problem controller workers lock emergency drift machine
        arbiter processes problems
        holder_pid acquisitions deaths rollbacks kills lost
        row pid alive connections requests heartbeat_age_seconds
        last_reload last_reload_age_seconds reloads workers_killed log_lines_lost
        pid part cpu_percent memory_bytes
    """
    assert expected.split() == members
