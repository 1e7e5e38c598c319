"""A server in unusual surroundings: a hidden /proc, another user, no directory to write to, no docstrings."""

import http.client
import os
import signal
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

from app.telemetry.metric_files import METRICS_PREFIX
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, LiveServer, free_port
from tests.app.httpd.certificate import CERTIFICATE, KEY, OTHER_KEY, write_certificate
from tests.conftest import SMALL

NOBODY: Final = 65534
# Runs a command in a mount namespace of its own after a shell command.
IN_NAMESPACE: Final = ("unshare", "--mount", "sh", "-c")
FIRST_PROCESS: Final = ("unshare", "--pid", "--fork", "--kill-child")
HIDE_PROC: Final = (*IN_NAMESPACE, 'mount -t proc -o subset=pid proc /proc && exec "$@"', "sh")


def _works(*command: str) -> bool:
    try:
        return (
            subprocess.run([*command, "true"], capture_output=True, check=False, timeout=HANG_SECONDS).returncode == 0
        )
    except OSError:
        return False


def _memory_bytes(server: LiveServer) -> float:
    scrape = server.get("/metrics").body.decode()
    [sample] = [line for line in scrape.splitlines() if line.startswith("memory_usage_bytes ")]
    return float(sample.split()[1])


@pytest.mark.skipif(not _works(*HIDE_PROC), reason="/proc cannot be mounted here")
def test_proc_with_processes_only(tmp_path: Path) -> None:
    """Containers can hide everything else in /proc, memory and CPU time of the host among it."""
    server = LiveServer(tmp_path, {**SMALL, "WORKERS": "2"}, launcher=HIDE_PROC).start()
    try:
        assert server.failed_checks() == set()
        detailed = eventually(
            lambda: (document := server.get("/health/detailed").json)["system"]["memory_total_mb"] and document
        )
        assert 0 < detailed["system"]["memory_percent"] < 100
        assert detailed["checks"]["memory_manager"] == {"healthy": True}
    finally:
        server.stop()


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&-"])
def test_a_closed_standard_stream_is_not_the_block(tmp_path: Path, closed: str) -> None:
    """A print would go to the file that has the number of the closed stream; even in the arbiter of an upgrade."""
    launcher = ("sh", "-c", f'exec "$@" {closed}', "sh")
    server = LiveServer(tmp_path, dict(SMALL), launcher=launcher).start()
    store = server.store()
    vitals = store.block.region("vitals")
    try:
        server.event([1.0] * 8, 1.0)
        assert _streams(server.pid, closed) == {"/dev/null", str(server.log_path)}
        os.kill(server.pid, signal.SIGUSR2)
        successor = eventually(lambda: vitals.arbiter_pid != server.pid and int(vitals.arbiter_pid))
        assert _streams(successor, closed) == {"/dev/null", str(server.log_path)}
        assert server.get("/memories/1").status == 200
        psutil.Process(successor).terminate()
        psutil.wait_procs([psutil.Process(successor)], timeout=HANG_SECONDS)
    finally:
        server.stop()


def _streams(arbiter: int, closed: str) -> set[str]:
    """Return what the standard streams of an arbiter and its children are."""
    processes = [psutil.Process(arbiter), *psutil.Process(arbiter).children()]
    assert len(processes) >= 3, closed
    return {os.readlink(f"/proc/{process.pid}/fd/{number}") for process in processes for number in range(3)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
class TestAnotherUser:
    def test_serves_and_is_measured(self, tmp_path: Path) -> None:
        """Workers and children give up the privileges of the arbiter; metrics and memory can still be read."""
        options = ("--user", str(NOBODY), "--group", str(NOBODY))
        server = LiveServer(tmp_path, {**SMALL, "WORKERS": "2"}, options=options).start()
        try:
            forked = psutil.Process(server.pid).children()
            assert {process.uids().effective for process in forked} == {NOBODY}
            assert server.event([1.0] * 8, 1.0)["accepted"]
            eventually(lambda: _memory_bytes(server) > 20e6)
        finally:
            server.stop()

    def test_dies_with_the_arbiter(self, tmp_path: Path) -> None:
        """A change of credentials clears the kernel's order to end a process with its parent."""
        options = ("--user", str(NOBODY), "--group", str(NOBODY))
        server = LiveServer(tmp_path, {**SMALL, "WORKERS": "2"}, options=options).start()
        forked = psutil.Process(server.pid).children()
        assert len(forked) == 3
        psutil.Process(server.pid).kill()

        _, alive = psutil.wait_procs(forked, timeout=HANG_SECONDS)
        assert alive == []


def test_no_directory_for_metrics(tmp_path: Path) -> None:
    """The server does not start, and says what to set."""
    (tmp_path / "file").touch()
    server = LiveServer(tmp_path, {**SMALL, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "file")})

    with pytest.raises(
        AssertionError, match=r"mlsdm cannot start: metrics cannot be kept in .*/file .*: set PROMETHEUS"
    ):
        server.start()


@pytest.mark.skipif(not _works(*IN_NAMESPACE, "mount -t tmpfs none /mnt", "sh"), reason="nothing can be mounted here")
def test_a_reload_without_room_for_metrics(tmp_path: Path) -> None:
    """New workers cannot boot: the old ones serve on, with every memory, until there is room again."""
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    launcher = (*IN_NAMESPACE, f'mount -t tmpfs -o size=2m none {metrics} && exec "$@"', "sh")
    server = LiveServer(tmp_path, {**SMALL, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}, launcher=launcher).start()
    try:
        server.event([1.0] * 8, 1.0)
        before = {worker.pid for worker in psutil.Process(server.pid).children()}
        filler = Path(f"/proc/{server.pid}/root{metrics}/filler")
        with suppress(OSError):  # there is no room for all of it
            filler.write_bytes(bytes(4 << 20))

        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: "the old workers stay: " in server.log)
        eventually(lambda: {worker.pid for worker in psutil.Process(server.pid).children()} == before)
        assert "No space left on device" in server.log
        assert server.event([1.0] * 8, 1.0)["memory_id"] == 2

        filler.unlink()
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: len(before & {worker.pid for worker in psutil.Process(server.pid).children()}) == 1)
        assert server.event([1.0] * 8, 1.0)["memory_id"] == 3
    finally:
        server.stop()


class TlsServer(LiveServer):
    """A server that is reached over TLS."""

    def connect(self) -> http.client.HTTPConnection:
        trust = ssl.create_default_context(cadata=CERTIFICATE)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=HANG_SECONDS, context=trust)
        connection.connect()
        return connection


def test_a_reload_with_the_key_of_another_certificate(tmp_path: Path) -> None:
    """New workers cannot boot: the old ones serve on, with every memory, until the key is the right one again."""
    certificate, key = write_certificate(tmp_path)
    server = TlsServer(tmp_path, dict(SMALL), options=("--certfile", certificate, "--keyfile", key)).start()
    arbiter = psutil.Process(server.pid)
    try:
        server.event([1.0] * 8, 1.0)
        before = set(arbiter.children())
        Path(key).write_text(OTHER_KEY)

        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: "the old workers stay: " in server.log)
        eventually(lambda: set(arbiter.children()) == before)
        assert server.event([1.0] * 8, 1.0)["memory_id"] == 2

        Path(key).write_text(KEY)
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: len(before & set(arbiter.children())) == 1)  # the controller
        assert server.event([1.0] * 8, 1.0)["memory_id"] == 3
    finally:
        server.stop()


def test_two_servers_share_the_directory_for_metrics(tmp_path: Path) -> None:
    """Neither takes the other's figures away, nor adds them to its own."""
    shared = {**SMALL, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    one, other = LiveServer(tmp_path, shared).start(), LiveServer(tmp_path, shared)
    try:
        one.event([1.0] * 8, 1.0)
        other.start()
        counts = [server.get("/metrics").body.count(b'route="/event",status="200"} 1.0') for server in (one, other)]
        assert counts == [1, 0]
        assert len(list((tmp_path / "metrics").glob(f"{METRICS_PREFIX}*"))) == 2
    finally:
        one.stop()
        other.stop()
    assert list((tmp_path / "metrics").iterdir()) == []


def test_without_docstrings(tmp_path: Path) -> None:
    """`python -OO` removes docstrings and assertions; nothing that is served depends on them."""
    server = LiveServer(tmp_path, {**SMALL, "PYTHONOPTIMIZE": "2"}).start()
    try:
        served = [server.get(path).status for path in ("/openapi.json", "/docs", "/state", "/metrics")]
        assert served == [200, 200, 200, 200]
        unknown = server.get(f"/memories/{2**40}").json
        assert unknown["detail"]
        assert "None" not in str(unknown)
    finally:
        server.stop()


def test_signals_for_the_arbiter_do_not_end_workers(tmp_path: Path) -> None:
    """They reach the whole process group, or all processes of a name."""
    server = LiveServer(tmp_path, dict(SMALL)).start()
    block = server.store().block
    try:
        forked = psutil.Process(server.pid).children()
        for process in forked:
            for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH):
                process.send_signal(number)
        beats = {row: int(block.region("rows", row).heartbeat_ns) for row, _ in block.live_workers()}
        assert len(beats) == 2
        eventually(lambda: all(block.region("rows", row).heartbeat_ns > beat for row, beat in beats.items()))
        assert psutil.Process(server.pid).children() == forked
        assert "silent" not in server.log
    finally:
        server.stop()


@pytest.mark.skipif(not _works(*FIRST_PROCESS), reason="no process namespace can be made here")
@pytest.mark.parametrize("command", [("gunicorn", "-c", "gunicorn.conf.py", "app.main:app"), ("mlsdm", "serve")])
def test_sigterm_during_the_start_of_a_container(tmp_path: Path, command: tuple[str, ...]) -> None:
    """The first process of a container has no default actions: the kernel drops what it does not handle."""
    program = str(Path(sys.executable).with_name(command[0]))
    environ = {**SMALL, "PATH": os.environ["PATH"], "PORT": str(free_port()), "TMPDIR": str(tmp_path)}

    def log_of_stopped_start() -> str:
        """Send SIGTERM as soon as it is handled; return the log."""
        with subprocess.Popen(
            [*FIRST_PROCESS, program, *command[1:]], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
        ) as outer:
            first = eventually(lambda: next(iter(psutil.Process(outer.pid).children()), None))
            eventually(lambda: _handles(first.pid, signal.SIGTERM))
            first.send_signal(signal.SIGTERM)
            _, log = outer.communicate(timeout=HANG_SECONDS)
        assert outer.returncode == 0
        return log

    # On a busy machine the server may have started before the signal is sent.
    assert eventually(lambda: "mlsdm is stopped while it starts" in log_of_stopped_start())


def _handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)
