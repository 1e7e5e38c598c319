"""deploy/systemd: systemd understands the unit, and follows a real upgrade of the server."""

import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

from core.settings.config import Config
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer
from tests.conftest import SMALL
from tests.programs import needs

UNIT: Final = ROOT / "deploy/systemd/mlsdm.service"
_PID: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


def settings() -> dict[str, list[str]]:
    """Return the values of each setting of the unit, in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """Every setting is known and every program is there: of this checkout instead of /opt."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/mlsdm/bin/mlsdm", str(Path(sys.executable).with_name("mlsdm"))))

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_no_setting_of_the_unit_loses_the_memory_by_accident() -> None:
    """What would: a signal to the workers, an end before the drain is over, the death of one worker, too few files."""
    unit, config = settings(), Config()

    assert unit["ExecReload"] == [
        "/opt/mlsdm/bin/mlsdm check-config --against $MAINPID /etc/mlsdm/config.yaml", "/bin/kill -HUP $MAINPID",
    ]  # fmt: skip
    assert (unit["KillMode"], unit["OOMPolicy"], unit["Restart"]) == (["mixed"], ["continue"], ["on-failure"])
    assert int(unit["TimeoutStopSec"][0]) > config.resources.shutdown_timeout + 5
    assert int(unit["LimitNOFILE"][0]) > 2 * config.server.connections_max
    assert not unit.keys() & {"RuntimeMaxSec", "WatchdogSec", "BindsTo", "PartOf", "PIDFile"}


class ServiceManager:
    """Receives what the processes of a service notify, as systemd does, with the sender's pid."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.settimeout(HANG_SECONDS)
        self._socket.bind(self.address)

    def receive(self) -> tuple[int, str]:
        """Return the next notification: who sent it, and its first line."""
        message, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_PID.size))
        [sender] = [_PID.unpack(data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS]
        return sender, message.decode().splitlines()[0]

    def waiting(self) -> int:
        """Return 1 if there is another notification, else 0."""
        return len(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def test_the_old_arbiter_names_the_new_one_as_main_process(tmp_path: Path) -> None:
    """While it is the main process itself: systemd believes no other, and ends the service with its main process."""
    manager = ServiceManager(tmp_path / "notify")
    server = LiveServer(tmp_path, {**SMALL, "NOTIFY_SOCKET": manager.address}).start()
    successor = None
    try:
        assert server.process is not None
        assert manager.receive() == (server.pid, "READY=1")
        os.kill(server.pid, signal.SIGUSR2)
        new, ready = manager.receive()
        successor = psutil.Process(new)
        assert (ready, successor.ppid()) == ("READY=1", server.pid)
        server.process.send_signal(signal.SIGTERM)
        assert manager.receive() == (server.pid, f"MAINPID={new}")
        assert server.process.wait(HANG_SECONDS) == 0
        assert server.get("/health/liveness").status == 200
        successor.terminate()
        successor.wait(HANG_SECONDS)
    finally:
        manager.close()
        server.kill()
        if successor is not None and successor.is_running():
            successor.kill()


def test_an_arbiter_without_a_successor_names_none(tmp_path: Path) -> None:
    """An ordinary stop."""
    manager = ServiceManager(tmp_path / "notify")
    server = LiveServer(tmp_path, {**SMALL, "NOTIFY_SOCKET": manager.address}).start()
    assert manager.receive()[1] == "READY=1"
    server.stop()

    assert manager.waiting() == 0
    manager.close()
