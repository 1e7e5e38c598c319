"""The record of an arbiter: what it notes is seen by its forks, and from outside."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.processes.arbiter_record import ArbiterRecord, KillReason, ReloadResult, state_of
from testing.eventually import eventually
from testing.live_server import LiveServer


def test_a_record_is_read_from_outside() -> None:
    """A process that inherits the descriptor is found by its pid; what the writer does afterwards is seen."""
    record = ArbiterRecord(lambda: 1_700_000_000_500_000_000)
    record.started(ReloadResult.SUCCEEDED, 7)
    record.reloaded(ReloadResult.REFUSED)
    record.reloaded(ReloadResult.REFUSED)
    record.worker_killed(KillReason.STUCK)

    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[record.descriptor]) as heir:
        seen = state_of(heir.pid)
        heir.communicate(b"\n")

    assert seen is not None
    assert seen == record.state()
    assert (seen.loaded_at, seen.last_result, seen.lost_lines_descriptor) == (1_700_000_000.5, "refused", 7)
    assert seen.reloads == {"succeeded": 0, "refused": 2, "not_booted": 0, "incomplete": 0, "failed": 0}
    assert seen.workers_killed == {"stopped": 0, "stuck": 1}


def test_a_process_without_a_record_has_none() -> None:
    """So has a process that has gone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert state_of(other.pid) is None
        other.communicate(b"\n")

    assert state_of(other.pid) is None


def reloads(server: LiveServer) -> dict[str, float]:
    """Return what a scrape says of reloads: the counts by result, and whether the last one succeeded."""
    lines = server.get("/metrics").body.decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    counts = {
        result.name.lower(): float(samples[f'mlsdm_reloads_total{{result="{result.name.lower()}"}}'])
        for result in ReloadResult
    }
    return {name: count for name, count in counts.items() if count} | {
        "successful": float(samples["mlsdm_config_last_reload_successful"])
    }


def timestamp(server: LiveServer) -> float:
    """Return the time of the last reload."""
    lines = server.get("/metrics").body.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("mlsdm_config_last_reload_timestamp")))


def test_a_scrape_has_the_result_of_the_last_reload(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    """Of one that is refused, of one whose workers do not boot, and of one that succeeds after both."""
    file = tmp_path / "config.yaml"
    file.write_text("health: {cpu_gates_readiness: false}\n")
    server = serve(CONFIG_PATH=str(file))
    assert reloads(server) == {"successful": 1}
    started = timestamp(server)

    file.write_text("health: {cpu_gates_readiness: perhaps}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: reloads(server) == {"refused": 1, "successful": 0})
    assert timestamp(server) > started

    file.write_text("health: {cpu_gates_readiness: true}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: reloads(server) == {"refused": 1, "succeeded": 1, "successful": 1})
