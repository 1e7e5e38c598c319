"""The worker inside a real Gunicorn: boot, signals, drain, recycling, sharing of connections, TLS.

Each test writes a small application into its own directory, starts `python -m gunicorn` on an ephemeral port, and ends
it by its pid. Nothing is asserted about speed: a test waits for an event, or for a number of the worker's beats.
"""

import contextlib
import http.client
import itertools
import json
import math
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import app.httpd.gunicorn_worker
from app.httpd.connection_caps import SURPLUS_COUNT_MAX
from app.httpd.gunicorn_worker import BEAT_SECONDS
from core.limits import IDLE_SECONDS, LINGER_SECONDS
from testing.eventually import HANG_SECONDS, eventually
from tests.app.httpd.certificate import CERTIFICATE, write_certificate

IDLE_BEATS = math.ceil((IDLE_SECONDS.value + 0.5) / BEAT_SECONDS)  # after which an unused connection is idle
ROOT = Path(app.httpd.gunicorn_worker.__file__).parents[2]

APP = """
import json, os, threading, time
from pathlib import Path

HERE = Path(__file__).parent

def note(text):
    with (HERE / "notes").open("a") as notes:
        notes.write(f"{text} {os.getpid()}\\n")

class App:
    beats = 0
    worker = None

    def way_of(self, method, path):
        return path == "/slow"

    def open(self, worker):
        self.worker = worker
        note("open")

    def close(self):
        note("close")

    def on_beat(self):
        self.beats += 1
        with (HERE / "beats").open("a") as beats:
            beats.write(".")

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/slow":
            note("slow")
            while not (HERE / "gate").exists():
                time.sleep(0.01)
        if path == "/stuck":
            time.sleep(3600)
        body = {"pid": os.getpid(), "beats": self.beats, "nr": self.worker and self.worker.nr,
                "scheme": environ["wsgi.url_scheme"], "client": environ["REMOTE_ADDR"],
                "size": len(environ["wsgi.input"].read())}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

app = App()
"""

CONF = """
bind = "127.0.0.1:0"
worker_class = "app.httpd.gunicorn_worker.EventedWorker"
control_socket_disable = True
graceful_timeout = 120
"""


# -- a server ------------------------------------------------------------------------------------------------------


class Gunicorn:
    """One running server, with its directory and its log."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str]") -> None:
        self.directory = directory
        self.process = process
        self.lines: list[str] = []
        self._pump = threading.Thread(target=self._read)
        self._pump.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def address(self) -> tuple[str, int]:
        found = re.search(r"Listening at: https?://\[?([0-9.:]*?)\]?:([0-9]+) \(", self.log)
        assert found, self.log
        return found[1], int(found[2])

    @property
    def workers(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def notes(self, what: str) -> list[int]:
        """Return the pids of the workers that wrote the note `what`, in order."""
        path = self.directory / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == what]

    def wait_beats(self, count: int) -> None:
        """Wait until the worker has beaten `count` more times. Its clock advances in beats only."""

        def beats() -> int:
            path = self.directory / "beats"
            return path.stat().st_size if path.exists() else 0

        start = beats()
        wait_until(lambda: beats() >= start + count, self)

    def connect(self) -> http.client.HTTPConnection:
        client = http.client.HTTPConnection(*self.address, timeout=HANG_SECONDS)
        client.connect()
        return client

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the server and of its log, and return its exit status."""
        status = self.process.wait(HANG_SECONDS)
        self._pump.join(HANG_SECONDS)
        return status


def wait_until(condition: Callable[[], Any], server: Gunicorn | None = None) -> None:
    """Wait until `condition` holds; when it does not, fail with the log of `server`."""
    try:
        eventually(condition)
    except AssertionError as error:
        raise AssertionError(server.log if server else str(error)) from None


@contextlib.contextmanager
def gunicorn(directory: Path, *options: str, app: str = APP, conf: str = "", ready: bool = True) -> Iterator[Gunicorn]:
    """Run Gunicorn with `app` as its application; `conf` is added to its configuration file."""
    (directory / "served.py").write_text(app)
    (directory / "gunicorn.conf.py").write_text(CONF + conf)
    command = [sys.executable, "-m", "gunicorn", *options, "served:app"]
    environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{directory}", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=directory, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = Gunicorn(directory, process)
    try:
        if ready:
            wait_until(lambda: "Listening at" in server.log or process.poll() is not None, server)
            wait_until(lambda: server.notes("open"), server)
        yield server
    finally:
        (directory / "gate").touch()
        family = [process.pid, *(server.workers if process.poll() is None else [])]
        process.terminate()
        try:
            server.wait()
        finally:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def fetch(client: http.client.HTTPConnection, path: str = "/", body: bytes | None = None) -> dict[str, Any]:
    client.request("GET" if body is None else "POST", path, body)
    response = client.getresponse()
    assert response.status == 200
    answer = json.loads(response.read())
    assert isinstance(answer, dict)
    return answer | {"connection": response.headers.get("connection")}


class BusyClient(threading.Thread):
    """A keep-alive client that posts until it is stopped, connects again after `Connection: close`, and records every
    failure.
    """

    def __init__(self, server: Gunicorn) -> None:
        super().__init__()
        self.server = server
        self.pids: Counter[int] = Counter()
        self.failures: list[Exception] = []
        self.stopping = False
        self.start()

    def run(self) -> None:
        while not self.stopping:
            try:
                with contextlib.closing(self.server.connect()) as client:
                    while not self.stopping:
                        answer = fetch(client, body=b"x" * 2048)
                        self.pids[answer["pid"]] += 1
                        if answer["connection"] == "close":
                            break
            except Exception as error:  # noqa: BLE001 - every kind of failure is recorded
                self.failures.append(error)

    def end(self) -> None:
        self.stopping = True
        self.join(HANG_SECONDS)


# -- serving ---------------------------------------------------------------------------------------------------------


def test_serves_and_calls_the_hooks(tmp_path: Path) -> None:
    """`open` runs before the first request, `on_beat` while the worker serves, `close` at its end; `nr` counts."""
    with gunicorn(tmp_path) as server:
        client = server.connect()
        first = fetch(client)
        wait_until(lambda: fetch(client)["beats"] >= 2)
        last = fetch(client, body=b"x" * 100_000)

        assert tuple(last[key] for key in ("scheme", "client", "size", "connection")) == (
            "http",
            "127.0.0.1",
            100_000,
            None,
        )
        assert first["nr"] == 1
        assert last["nr"] > 2
        assert [first["pid"]] == server.workers == server.notes("open")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.notes("close") == [first["pid"]]


def test_serves_a_plain_wsgi_function(tmp_path: Path) -> None:
    """An application needs none of the hooks."""
    app = """
def app(environ, start_response):
    start_response("200 OK", [])
    yield b"{}"
"""
    with gunicorn(tmp_path, app=app, ready=False) as server:
        wait_until(lambda: "Listening at" in server.log)

        assert "connection" in fetch(server.connect())


def test_serves_ipv6(tmp_path: Path) -> None:
    """An IPv6 listener serves, and REMOTE_ADDR is the client's address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with gunicorn(tmp_path, "-b", "[::1]:0") as server:
        assert fetch(server.connect())["client"] == "::1"


def test_serves_tls(tmp_path: Path) -> None:
    """TLS is served with the configured certificate and keep-alive; plain HTTP on that port disturbs nobody."""
    write_certificate(tmp_path)
    with gunicorn(tmp_path, "--certfile", "certificate.pem", "--keyfile", "key.pem") as server:
        with socket.create_connection(server.address, HANG_SECONDS) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(4096):
                    pass
        trust = ssl.create_default_context(cadata=CERTIFICATE)
        client = http.client.HTTPSConnection(*server.address, timeout=HANG_SECONDS, context=trust)
        answers = [fetch(client, body=b"x" * size) for size in (1, 300_000)]

        assert [(answer["scheme"], answer["size"]) for answer in answers] == [("https", 1), ("https", 300_000)]
        client.request("GET", "/", headers={"Connection": "close"})
        assert client.getresponse().status == 200


def test_term_waits_for_a_slow_reader_on_tls(tmp_path: Path) -> None:
    """A drain waits for encrypted bytes that the peer has not read, for longer than LINGER_SECONDS."""
    app = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"x" * 1_000_000]
"""
    options = ("--certfile", "certificate.pem", "--keyfile", "key.pem")
    write_certificate(tmp_path)
    with gunicorn(tmp_path, *options, app=app, ready=False) as server, socket.socket() as plain:
        wait_until(lambda: "Listening at" in server.log and server.workers, server)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        plain.settimeout(HANG_SECONDS)
        plain.connect(server.address)
        trust = ssl.create_default_context(cadata=CERTIFICATE)
        with trust.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            received = client.recv(65_536)
            server.signal(signal.SIGTERM)
            time.sleep(LINGER_SECONDS.value + 1)
            while piece := client.recv(65_536):
                received += piece

        assert server.wait() == 0
    assert len(received.partition(b"\r\n\r\n")[2]) == 1_000_000


def start_request(server: Gunicorn) -> http.client.HTTPConnection:
    """Return a client that has sent half of its request."""
    client = server.connect()
    client.putrequest("POST", "/")
    client.putheader("Content-Length", "4")
    client.endheaders(b"ab")
    return client


def test_too_many_connections(tmp_path: Path) -> None:
    """At worker_connections, with no idle connection, a new client gets 503 with Retry-After; the open connections are
    served.
    """
    with gunicorn(tmp_path, "--worker-connections", "3") as server:
        clients = [start_request(server) for _ in range(3)]
        refused = server.connect()
        refused.request("GET", "/")
        response = refused.getresponse()
        problem = json.loads(response.read())

        assert (response.status, response.headers["retry-after"], response.headers["connection"]) == (503, "1", "close")
        assert (problem["code"], problem["status"]) == ("too_many_connections", 503)
        for client in clients:
            assert client.sock is not None
            client.sock.sendall(b"cd")
            assert client.getresponse().status == 200


PROBED = """
class Probed(App):
    probes = {"/probe"}
app = Probed()
"""


def test_probes_are_answered_above_the_maximum(tmp_path: Path) -> None:
    """In a full worker, among more clients above the maximum than it holds, a probe is answered, and nothing else."""
    with gunicorn(tmp_path, "--worker-connections", "3", app=APP + PROBED) as server:
        busy = [start_request(server) for _ in range(3)]
        silent = [server.connect() for _ in range(SURPLUS_COUNT_MAX + 20)]
        for _ in range(3):
            assert fetch(server.connect(), "/probe")["connection"] == "close"
        refused = server.connect()
        refused.request("GET", "/")
        assert refused.getresponse().status == 503
        for client in busy:
            assert client.sock is not None
            client.sock.sendall(b"cd")
            assert client.getresponse().status == 200
        assert {client.sock.recv(65_536)[:12] for client in silent[-20:] if client.sock is not None} == {
            b"HTTP/1.1 503"
        }


def test_probes_are_answered_above_the_maximum_on_tls(tmp_path: Path) -> None:
    """Clients that never begin a TLS handshake keep no probe out."""
    options = ("--certfile", "certificate.pem", "--keyfile", "key.pem", "--worker-connections", "1")
    write_certificate(tmp_path)
    trust = ssl.create_default_context(cadata=CERTIFICATE)
    with gunicorn(tmp_path, *options, app=APP + PROBED) as server:
        silent = [socket.create_connection(server.address, HANG_SECONDS) for _ in range(SURPLUS_COUNT_MAX + 20)]
        client = http.client.HTTPSConnection(*server.address, timeout=HANG_SECONDS, context=trust)

        assert fetch(client, "/probe")["connection"] == "close"
        for each in silent:
            each.close()


def test_the_longest_idle_makes_room(tmp_path: Path) -> None:
    """In a full worker a new connection replaces the one that has been idle longest, and no other."""
    with gunicorn(tmp_path, "--worker-connections", "4") as server:
        busy, *idle = (server.connect() for _ in range(4))
        busy.request("GET", "/slow")
        for client in idle:
            fetch(client)
        for client in idle[1:]:
            server.wait_beats(3)  # so that the worker's clock tells the connections apart
            fetch(client)
        server.wait_beats(IDLE_BEATS)
        newcomer = server.connect()
        fetch(newcomer)

        assert idle[0].sock is not None
        assert idle[0].sock.recv(1) == b""
        for client in (*idle[1:], newcomer):
            fetch(client)
        (tmp_path / "gate").touch()
        assert busy.getresponse().status == 200


def test_each_new_connection_replaces_an_idle_one(tmp_path: Path) -> None:
    """When as many new connections arrive as there are idle ones, each replaces one and none is refused."""
    with gunicorn(tmp_path, "--worker-connections", "8") as server:
        idle = [server.connect() for _ in range(8)]
        server.wait_beats(IDLE_BEATS)
        newcomers = [server.connect() for _ in range(8)]

        for client in newcomers:
            fetch(client)
        assert [client.sock.recv(1) for client in idle if client.sock is not None] == [b""] * 8


# -- sharing ---------------------------------------------------------------------------------------------------------

SHARING = '''
import mmap, struct
COUNTS = mmap.mmap(-1, 64)

class Rows:
    """Counts of the workers by age; a row without a worker holds zero, a row in use its count plus one."""

    def __init__(self, row):
        self.row = row

    def publish(self, connections):
        COUNTS[8 * self.row:8 * self.row + 8] = struct.pack("q", connections + 1)

    def fewest(self):
        return min(count - 1 for count in struct.unpack("8q", COUNTS[:]) if count)

class Sharing(App):
    def open(self, worker):
        worker.occupancy = Rows(worker.age % 8)
        worker.occupancy.publish(0)
        super().open(worker)

app = Sharing()
'''


def test_workers_share_connections(tmp_path: Path) -> None:
    """Of 32 connections to two workers, neither gets more than 24. Without sharing, one worker gets 31 each time.

    A worker waits 0.05 s for the emptier one, which may not run that soon on a busy machine; so several rounds count.
    """
    with gunicorn(tmp_path, "-w", "2", "--preload", app=APP + SHARING) as server:
        wait_until(lambda: len(server.notes("open")) == 2)

        def is_shared() -> bool:
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(32)]
                shares = Counter(fetch(client)["pid"] for client in clients)
            return len(shares) == 2 and max(shares.values()) <= 24

        wait_until(is_shared, server)


def test_stuck_worker_does_not_starve_clients(tmp_path: Path) -> None:
    """When the emptier worker accepts nothing, another one accepts the connections after a short wait."""
    alone = "\nclass Never(Rows):\n    def fewest(self): return 0\nRows = Never\n"
    with gunicorn(tmp_path, app=APP + SHARING + alone) as server:
        clients = [server.connect() for _ in range(20)]

        assert {fetch(client)["pid"] for client in clients} == {server.workers[0]}


def test_idle_connections_make_room_without_descriptors(tmp_path: Path) -> None:
    """When descriptors run out, idle connections are closed for those that wait; one line is logged."""
    app = (
        APP
        + """
import resource
class Poor(App):
    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/poor":
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, used + 8))
        return super().__call__(environ, start_response)
app = Poor()
"""
    )
    with gunicorn(tmp_path, app=app) as server:
        fetch(server.connect(), "/poor")
        clients = [server.connect() for _ in range(48)]
        wait_until(lambda: "Cannot accept" in server.log, server)

        for client in clients[40:]:
            fetch(client)
        for client in clients:
            client.close()
        # The end is logged when an attempt to accept finds nobody, which may be after the next connection.
        wait_until(lambda: fetch(server.connect()) and "Accepting connections again" in server.log, server)
        assert server.log.count("Cannot accept") == 1


def test_the_maximum_follows_from_the_descriptors(tmp_path: Path) -> None:
    """With few descriptors a worker holds fewer connections than configured, says so, and answers probes."""
    conf = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    with gunicorn(tmp_path, app=APP + PROBED, conf=conf) as server:
        clients = [server.connect() for _ in range(80)]
        answer = fetch(server.connect(), "/probe")

        assert answer["connection"] == "close"
        assert re.search(r"holds at most \d+ connections, not 1000: RLIMIT_NOFILE is 64", server.log)
        assert "Cannot accept" not in server.log
        for client in clients:
            client.close()


# -- ending ----------------------------------------------------------------------------------------------------------


def test_term_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """SIGTERM: requests in flight are answered with `Connection: close`, idle connections end, the exit status is 0."""
    with gunicorn(tmp_path) as server:
        silent, slow, cut = server.connect(), server.connect(), start_request(server)
        fetch(silent)
        slow.request("GET", "/slow")
        wait_until(lambda: server.notes("slow"))
        server.signal(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in server.log)
        assert silent.sock is not None
        assert silent.sock.recv(1) == b""
        wait_until(lambda: refuses(server), server)
        assert cut.sock is not None
        cut.sock.sendall(b"cd")
        (tmp_path / "gate").touch()

        for client in (slow, cut):
            response = client.getresponse()
            assert (response.status, response.headers["connection"]) == (200, "close")
        assert server.wait() == 0
        assert len(server.notes("close")) == 1


def refuses(server: Gunicorn) -> bool:
    """Return whether nobody listens on the server's port any more."""
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_quit_does_not_wait(tmp_path: Path, number: int) -> None:
    """SIGQUIT and SIGINT end the server although a request runs and graceful_timeout is an hour."""
    with gunicorn(tmp_path, "--graceful-timeout", "3600") as server:
        client = server.connect()
        client.request("GET", "/slow")
        wait_until(lambda: server.notes("slow"))
        server.signal(number)

        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_hup_fails_no_request(tmp_path: Path) -> None:
    """Two reloads under load replace the workers and fail no request."""
    with gunicorn(tmp_path, "-w", "2") as server:
        wait_until(lambda: len(server.notes("open")) == 2)
        loads = [BusyClient(server) for _ in range(4)]

        def replaced(opened: int) -> bool:
            return len(server.notes("open")) == opened and len(server.workers) == 2

        for opened in (4, 6):
            server.signal(signal.SIGHUP)
            wait_until(partial(replaced, opened), server)
        served = sum(sum(load.pids.values()) for load in loads)
        wait_until(lambda: sum(sum(load.pids.values()) for load in loads) > served + 100)
        for load in loads:
            load.end()

        assert [failure for load in loads for failure in load.failures] == []
        assert len(set().union(*(load.pids for load in loads))) > 2


def test_max_requests_fails_no_request(tmp_path: Path) -> None:
    """Workers that are replaced after max_requests fail no request."""
    with gunicorn(tmp_path, "-w", "2", "--max-requests", "300", "--max-requests-jitter", "100") as server:
        loads = [BusyClient(server) for _ in range(4)]
        wait_until(lambda: len(server.notes("open")) >= 5, server)
        for load in loads:
            load.end()

        assert [failure for load in loads for failure in load.failures] == []
        assert server.notes("close")


def test_usr1_reopens_the_log(tmp_path: Path) -> None:
    """SIGUSR1 reopens the log files."""
    with gunicorn(tmp_path, "--error-logfile", "error.log", ready=False) as server:
        log = tmp_path / "error.log"
        wait_until(lambda: server.notes("open"))
        (worker,) = server.workers
        log.rename(tmp_path / "old.log")
        server.signal(signal.SIGUSR1)
        wait_until(log.exists)
        os.kill(worker, signal.SIGUSR1)
        os.kill(worker, signal.SIGTERM)

        wait_until(lambda: f"Worker exiting (pid: {worker})" in log.read_text())


def test_stuck_worker_is_replaced_and_prints_its_stack(tmp_path: Path) -> None:
    """A worker whose loop is stuck misses its heartbeats: it is aborted, prints its stack, and is replaced."""
    with gunicorn(tmp_path, "--timeout", "5") as server:
        (worker,) = server.workers
        client = server.connect()
        client.request("GET", "/stuck")
        wait_until(lambda: len(server.notes("open")) >= 2, server)

        assert worker not in server.workers
        assert "Fatal Python error: Aborted" in server.log
        assert re.search(r'served\.py", line \d+ in __call__', server.log)
        fetch(server.connect())


def test_worker_dies_with_its_arbiter(tmp_path: Path) -> None:
    """When the arbiter is killed, its workers end."""
    with gunicorn(tmp_path, "-w", "2") as server:
        wait_until(lambda: len(server.notes("open")) == 2)
        workers = [psutil.Process(pid) for pid in server.workers]
        server.signal(signal.SIGKILL)

        _, alive = psutil.wait_procs(workers, timeout=HANG_SECONDS)
        assert alive == []


# -- booting ---------------------------------------------------------------------------------------------------------

FRAGILE = """
if (HERE / "broken").exists():
    {failure}
"""


def test_first_boot_fails_loudly(tmp_path: Path) -> None:
    """A server whose first worker cannot boot halts with Gunicorn's status for that, 3."""
    (tmp_path / "broken").touch()
    with gunicorn(tmp_path, app=APP + FRAGILE.format(failure="raise ValueError('broken')"), ready=False) as server:
        assert server.wait() == 3
        assert "ValueError: broken" in server.log


@pytest.mark.parametrize(
    "failure",
    ["raise ValueError('broken')", "raise SystemExit(3)", "import nowhere_to_be_found", "raise KeyboardInterrupt"],
)
def test_later_boot_does_not_halt_the_server(tmp_path: Path, failure: str) -> None:
    """After the first boot a worker that cannot boot is retried, and the server recovers when the cause is gone.

    A worker is a copy of the arbiter: KeyboardInterrupt would return into the arbiter's loop and stop the server.
    """
    with gunicorn(tmp_path, app=APP + FRAGILE.format(failure=failure)) as server:
        fetch(server.connect())
        (tmp_path / "broken").touch()
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.log.count("exited with code 1.") >= 2, server)
        (tmp_path / "broken").unlink()
        wait_until(lambda: len(server.notes("open")) == 2, server)

        fetch(server.connect())
        assert server.process.poll() is None
        assert "Shutting down" not in server.log


def test_open_that_fails_is_a_failed_boot(tmp_path: Path) -> None:
    """When `open` raises in the first worker, the server halts."""
    app = APP + "\nclass Shut(App):\n    def open(self, worker): raise OSError('no block')\napp = Shut()\n"
    with gunicorn(tmp_path, app=app, ready=False) as server:
        assert server.wait() == 3
        assert "OSError: no block" in server.log


def test_term_during_open_still_closes_the_application(tmp_path: Path) -> None:
    """A worker that gets SIGTERM during `open` finishes it, then calls `close`."""
    app = (
        APP
        + """
import signal
class Hasty(App):
    def open(self, worker):
        super().open(worker)
        if len((HERE / "notes").read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            note("open")
app = Hasty()
"""
    )
    with gunicorn(tmp_path, app=app) as server:
        wait_until(lambda: len(server.notes("open")) == 3, server)

        first = server.notes("open")[0]
        assert server.notes("close") == [first]
        assert first not in server.workers


def test_reload_replaces_workers_when_the_source_changes(tmp_path: Path) -> None:
    """With --reload a change of the source replaces the worker.

    The reloader compares times of change that it has seen before, once a second; so the time changes until it has.
    """
    with gunicorn(tmp_path, "--reload", "--reload-engine", "poll") as server:
        fetch(server.connect())
        source = tmp_path / "served.py"
        source.write_text(APP.replace('"scheme": environ["wsgi.url_scheme"]', '"scheme": "changed"'))
        moments = itertools.count(round(time.time()))

        def is_replaced() -> bool:
            if len(server.notes("open")) == 1:
                os.utime(source, (0, next(moments)))
            return len(server.notes("open")) > 1

        wait_until(is_replaced, server)

        wait_until(lambda: fetch(server.connect())["scheme"] == "changed", server)
