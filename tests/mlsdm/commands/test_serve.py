"""`mlsdm serve` as an operator runs it: a process group of its own, signals, and nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shm.block import Block, find_blocks
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, free_port

Serve = Callable[..., "Served"]


class Served:
    """A `mlsdm serve` that was started with these words and variables. stdout and stderr go to one file."""

    def __init__(self, path: Path, *words: str, **environ: str) -> None:
        self.port = free_port()
        self.path = path
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
        small = {"PORT": str(self.port), "MLSDM_DIMENSION": "8", "MLSDM_CAPACITY": "100", "MLSDM_LOG_CAPACITY": "1024"}
        with path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlsdm", "serve", *words],
                cwd=ROOT,
                env={**kept, **small, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=HANG_SECONDS) as response:
            return json.load(response)

    def ready(self) -> "Served":
        """Wait until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.said
            try:
                return bool(self.get("/health/detailed")["checks"]["memory_manager"]["healthy"])
            except OSError:
                return False

        eventually(answers)
        return self

    def block(self, pid: int | None = None) -> Block:
        """Return its block, mapped read-only."""
        _, link = next(iter(find_blocks(pid or self.process.pid)))
        return Block.open(os.open(link, os.O_RDONLY), writable=False)

    def kill(self) -> None:
        """SIGKILL what is left of its session."""
        for member in psutil.process_iter():
            try:
                if os.getsid(member.pid) == self.process.pid:
                    member.kill()
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        self.process.wait(HANG_SECONDS)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `mlsdm serve`; whatever a failing test leaves is killed."""
    started: list[Served] = []

    def start(*words: str, **environ: str) -> Served:
        started.append(Served(tmp_path / f"serve-{len(started)}.log", *words, **environ))
        return started[-1]

    yield start
    for served in started:
        served.kill()


@pytest.mark.parametrize("to_the_group", [True, False])
def test_ctrl_c_ends_with_status_0_and_leaves_nothing(serve: Serve, to_the_group: bool) -> None:
    """A terminal sends SIGINT to arbiter, controller and workers at once, `kill -INT` to the arbiter alone."""
    served = serve("--workers", "2").ready()
    arbiter = psutil.Process(served.process.pid)
    members = eventually(lambda: len(found := arbiter.children(recursive=True)) == 3 and found)
    eventually(lambda: served.said.count("serves from row") == 2)  # from here on each handles the signal in its loop
    memory = os.stat(next(iter(find_blocks(served.process.pid)))[1]).st_ino

    if to_the_group:
        os.killpg(served.process.pid, signal.SIGINT)
    else:
        served.process.send_signal(signal.SIGINT)

    assert served.process.wait(HANG_SECONDS) == 0, served.said
    assert served.said.count("Worker exiting") == 2  # in order: what is killed after its grace does not say so
    assert "Traceback" not in served.said
    assert psutil.wait_procs(members, timeout=HANG_SECONDS)[1] == []
    assert memory not in [os.stat(link).st_ino for _, link in find_blocks()]


def test_ctrl_c_during_the_start_ends_with_status_0(serve: Serve) -> None:
    """It is sent as soon as the block exists."""
    served = serve("--workers", "1")
    eventually(lambda: served.process.poll() is not None or next(iter(find_blocks(served.process.pid)), None))

    os.killpg(served.process.pid, signal.SIGINT)

    assert served.process.wait(HANG_SECONDS) == 0, served.said
    assert "Traceback" not in served.said


def test_a_busy_port_is_one_sentence_with_the_remedy(serve: Serve) -> None:
    """The status is 1, and it does not retry for seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        served = serve("--port", str(port), LOG_LEVEL="error")

        assert served.process.wait(HANG_SECONDS) == 1

    sentence = f"mlsdm cannot start: cannot listen on 127.0.0.1:{port} (Address already in use): "
    assert served.said.startswith(sentence)
    assert served.said.endswith("PORT\n")
    assert served.said.count("\n") == 1


def test_a_wrong_configuration_lists_every_problem(serve: Serve, tmp_path: Path) -> None:
    """Problems of options, file and variables are listed together, with status 1."""
    path = tmp_path / "broken.yaml"
    path.write_text("payload_size_max: -1\n")

    served = serve("--config", str(path), "--port", "99999", "--workers", "many", MLSDM_CAPACITY="0")

    assert served.process.wait(HANG_SECONDS) == 1
    for key in ("payload_size_max is -1", "server.port is 99999", "server.workers is many", "capacity is 0"):
        assert f"\n{key} (" in served.said
    assert "Traceback" not in served.said


def test_options_override_variables_and_the_file_overrides_the_defaults(serve: Serve, tmp_path: Path) -> None:
    """--port overrides PORT; --config sets CONFIG_PATH."""
    path = tmp_path / "config.yaml"
    path.write_text("payload_size_max: 64\n")
    other = free_port()

    served = serve("--port", str(other), "--workers", "1", "--config", str(path))
    served.port = other
    served.ready()

    assert served.block().layout.payload_size_max == 64


def test_hup_reads_the_configuration_again(serve: Serve, tmp_path: Path) -> None:
    """A second worker starts; with a broken file nothing changes and the log says why."""
    path = tmp_path / "config.yaml"
    path.write_text("server:\n  workers: 1\n")
    served = serve("--config", str(path)).ready()
    block = served.block()

    def workers() -> int:
        return sum(block.region("rows", number).pid != 0 for number in range(block.layout.rows))

    path.write_text("server:\n  workers: 2\n")
    served.process.send_signal(signal.SIGHUP)
    eventually(lambda: workers() == 2)

    path.write_text("server:\n  workers: none\n")
    served.process.send_signal(signal.SIGHUP)
    eventually(lambda: "server.workers is none" in served.said)
    served.ready()


def test_usr2_starts_a_successor_with_the_same_arguments_on_the_same_memory(serve: Serve) -> None:
    """`python -m mlsdm` is executed again, although its sys.argv[0] cannot be executed."""
    served = serve("--workers", "1").ready()
    block = served.block()
    vitals = block.region("vitals")

    served.process.send_signal(signal.SIGUSR2)
    successor = int(eventually(lambda: vitals.arbiter_pid not in (0, served.process.pid) and vitals.arbiter_pid))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(HANG_SECONDS) == 0

    def state() -> Any:
        try:
            return served.get("/state")
        except OSError:
            return None

    assert eventually(state)["boot_id"] == block.boot_id
    os.kill(successor, signal.SIGTERM)
    eventually(lambda: not psutil.pid_exists(successor))


def test_a_removed_directory_is_one_sentence(tmp_path: Path) -> None:
    """A deployment may replace the directory from which an operator works."""
    directory = tmp_path / "release"
    directory.mkdir()
    ended = subprocess.run(
        ["sh", "-c", f"cd {directory} && rmdir {directory} && exec {sys.executable} -m mlsdm serve"],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr == "mlsdm serve: the current directory was removed: change to one that exists\n"
