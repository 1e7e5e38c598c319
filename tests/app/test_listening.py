"""The whole server on every kind of socket that Gunicorn offers, and what its log says about clients there."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import LiveServer, free_port
from tests.conftest import SMALL

ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)  # it may have been 3 already
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execvp(sys.argv[2], sys.argv[2:])
"""

# Executes a command with a listening socket as descriptor 9.
INHERIT = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(listener.fileno(), 9, inheritable=True)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=HANG_SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(HANG_SECONDS)
        self.sock.connect(self.path)


@dataclass
class UnixServer(LiveServer):
    """A server that is reached at the Unix socket `path`."""

    path: str = ""

    def connect(self) -> http.client.HTTPConnection:
        connection = UnixConnection(self.path)
        connection.connect()
        return connection


@contextlib.contextmanager
def running(server: LiveServer) -> Iterator[LiveServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def variables(**more: str) -> dict[str, str]:
    return {**SMALL, "WORKERS": "1", "MLSDM_OBSERVABILITY__LOGGING__FORMAT": "json", **more}


def audited(server: LiveServer, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Send an invalid event and return its line in the audit log."""
    assert server.request("POST", "/event", b"no JSON", dict(headers or {})).status == 400
    lines = eventually(lambda: [line for line in server.log.splitlines() if '"invalid_input"' in line])
    line: dict[str, Any] = json.loads(lines[-1])
    return line


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory with a short name: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="s") as name:
        yield name


def test_unix_socket(tmp_path: Path, directory: str) -> None:
    """Requests are served, whatever their Host; the log has the socket, and `unix` as the address of its clients."""
    path = f"{directory}/s"
    with running(UnixServer(tmp_path, variables(), options=("-b", f"unix:{path}"), path=path)) as server:
        assert server.get("/state").status == 200
        assert server.get("/state", Host="api.example.org").status == 200
        assert server.event([0.1] * 8, 0.9)["accepted"]
        line = audited(server, {"X-Forwarded-For": "203.0.113.7"})

        assert (line["address"], line["client_id"]) == ("unix", "unix")
        assert f"ready at unix:{path}: 1 workers" in server.log


def test_clients_of_a_proxy_on_a_unix_socket(tmp_path: Path, directory: str) -> None:
    """A proxy that is listed as `unix` is asked who its client is."""
    path, environ = f"{directory}/s", variables(MLSDM_SERVER__TRUSTED_PROXIES="unix")
    with running(UnixServer(tmp_path, environ, options=("-b", f"unix:{path}"), path=path)) as server:
        assert audited(server, {"X-Forwarded-For": "203.0.113.7"})["address"] == "203.0.113.7"


def test_the_socket_of_a_running_server_is_not_taken(tmp_path: Path, directory: str) -> None:
    """A second server on the same path does not start, and the first goes on."""
    path = f"{directory}/s"
    options = ("-b", f"unix:{path}")
    with running(UnixServer(tmp_path, variables(), options=options, path=path)) as server:
        second = UnixServer(tmp_path, variables(), options=options, path=path)
        with contextlib.suppress(AssertionError):  # it has ended, or the first server has answered in its place
            second.start()
        assert second.process is not None
        status = second.process.wait(HANG_SECONDS)
        second.kill()

        assert status == 1
        assert f"mlsdm cannot start: cannot listen on unix:{path} (Address already in use)" in second.log
        assert server.get("/livez").status == 200


def test_bound_address_counts_not_the_configured_one(tmp_path: Path) -> None:
    """`--bind` overrides the configuration: it does not matter whether the configured port is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = LiveServer(tmp_path, variables(PORT=str(taken.getsockname()[1])))
        server.options = ("-b", f"127.0.0.1:{server.port}")
        with running(server):
            assert server.get("/state").status == 200
            assert f"ready at http://127.0.0.1:{server.port}: " in server.log


def test_bound_address_decides_who_can_reach_an_open_server(tmp_path: Path) -> None:
    """Names of other hosts are refused where only this machine can connect, whatever HOST says."""
    server = LiveServer(tmp_path, variables(HOST="0.0.0.0"))
    server.options = ("-b", f"127.0.0.1:{server.port}")
    with running(server):
        assert server.get("/state", Host="evil.example.org").json["code"] == "misdirected"


def test_socket_activation(tmp_path: Path) -> None:
    """Sockets that systemd passes are served, and a reload and an upgrade keep them."""
    port = free_port()
    launcher: Sequence[str] = (sys.executable, "-c", ACTIVATE, str(port))
    with running(LiveServer(tmp_path, variables(), port=port, launcher=launcher)) as server:
        assert f"ready at http://127.0.0.1:{port}: " in server.log
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: server.log.count("serves from row") == 2)
        assert server.get("/state").status == 200


@pytest.mark.parametrize(
    ("launched", "options"), [(ACTIVATE, ()), (INHERIT, ("-b", "fd://9")), ("", ("--reuse-port",))]
)
def test_an_upgrade_keeps_the_sockets(tmp_path: Path, launched: str, options: Sequence[str]) -> None:
    """Whoever has opened them: systemd, another supervisor, or each worker for itself."""
    port = free_port()
    launcher: Sequence[str] = (sys.executable, "-c", launched, str(port)) if launched else ()
    server = LiveServer(tmp_path, variables(), port=port, launcher=launcher, options=options).start()
    try:
        server.event([0.1] * 8, 1.0)
        block, old = server.block(), server.process
        vitals = block.region("vitals")
        assert old is not None
        os.kill(server.pid, signal.SIGUSR2)
        eventually(lambda: vitals.arbiter_pid != old.pid)
        successor = psutil.Process(int(vitals.arbiter_pid))
        eventually(lambda: server.log.count("serves from row") == 2)
        old.terminate()
        assert old.wait(HANG_SECONDS) == 0

        assert server.get("/memories/1").status == 200
        successor.terminate()
        psutil.wait_procs([successor], timeout=HANG_SECONDS)
    finally:
        server.kill()


def test_a_stop_is_announced_where_the_arbiter_has_no_socket(tmp_path: Path) -> None:
    """With --reuse-port each worker opens its own. On a busy machine the question takes a longer drain period."""

    def is_announced(seconds: int) -> bool:
        environ = variables(MLSDM_RESOURCES__DRAIN_PERIOD=str(seconds))
        with running(LiveServer(tmp_path, environ, options=("--reuse-port",))) as server:
            assert server.process is not None
            server.process.terminate()
            with contextlib.suppress(OSError):  # the period is over
                return eventually(lambda: server.get("/readyz").status == 503)
        return False

    assert any(is_announced(seconds) for seconds in (2, 10, 60))


def test_ipv4_clients_of_a_socket_for_both_families(tmp_path: Path) -> None:
    """With HOST=:: an IPv4 client has its IPv4 address in the log, as on any other socket."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with running(LiveServer(tmp_path, variables(HOST="::"))) as server:
        line = audited(server)

        assert (line["address"], line["client_id"]) == ("127.0.0.1", "127.0.0.1")
        assert not re.search(r"::ffff:", server.log)
