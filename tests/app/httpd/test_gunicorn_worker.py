"""The worker, inside a real Gunicorn: boot, signals, drain, recycling, sharing of connections, TLS.

Each test writes a small application into a directory of its own, starts `python -m gunicorn` on an ephemeral port,
and ends it by its pid. Nothing is asserted about speed; PATIENCE only bounds what must happen anyway.
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
from app.httpd.gunicorn_worker import BEAT_SECONDS
from core.limits import IDLE_SECONDS, LINGER_SECONDS
from testing.eventually import HANG_SECONDS, eventually
from tests.app.httpd.certificate import CERTIFICATE, write_certificate

PATIENCE = HANG_SECONDS
IDLE_BEATS = math.ceil((IDLE_SECONDS.value + 0.5) / BEAT_SECONDS)  # and no longer busy, by the clock of the worker
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
        if path == "/wedge":
            note("wedge")
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
graceful_timeout = 10
"""


# -- a Gunicorn ------------------------------------------------------------------------------------------------------


class Gunicorn:
    """One running server, its directory and its log."""

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
        """Return the pids that noted `what`, in order."""
        path = self.directory / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == what]

    def beat(self, count: int) -> None:
        """Wait until the worker has beaten `count` times more: its clock goes on by no more than that, however late."""

        def beats() -> int:
            path = self.directory / "beats"
            return path.stat().st_size if path.exists() else 0

        before = beats()
        until(lambda: beats() >= before + count, self)

    def dial(self) -> http.client.HTTPConnection:
        client = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        client.connect()
        return client

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the server and of its log, and return its exit status."""
        status = self.process.wait(PATIENCE)
        self._pump.join(PATIENCE)
        return status


def until(condition: Callable[[], Any], server: Gunicorn | None = None) -> None:
    try:
        eventually(condition)
    except AssertionError as hangs:
        raise AssertionError(server.log if server else "") from hangs


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
            until(lambda: "Listening at" in server.log or process.poll() is not None, server)
            until(lambda: server.notes("open"), server)
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


class Load(threading.Thread):
    """A busy keep-alive client: posts until told to stop, connects again when told to close, and remembers every
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
                with contextlib.closing(self.server.dial()) as client:
                    while not self.stopping:
                        answer = fetch(client, body=b"x" * 2048)
                        self.pids[answer["pid"]] += 1
                        if answer["connection"] == "close":
                            break
            except Exception as error:  # noqa: BLE001 - every failure counts, whatever it is
                self.failures.append(error)

    def end(self) -> None:
        self.stopping = True
        self.join(PATIENCE)


# -- serving ---------------------------------------------------------------------------------------------------------


def test_serves_and_calls_the_hooks(tmp_path: Path) -> None:
    """The application is opened before the first request, beats while it serves, counts its requests, and is closed
    at the end.
    """
    with gunicorn(tmp_path) as server:
        client = server.dial()
        first = fetch(client)
        until(lambda: fetch(client)["beats"] >= 2)
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
    """None of the extra methods is required of an application."""
    app = """
def app(environ, start_response):
    start_response("200 OK", [])
    yield b"{}"
"""
    with gunicorn(tmp_path, app=app, ready=False) as server:
        until(lambda: "Listening at" in server.log)

        assert "connection" in fetch(server.dial())


def test_serves_ipv6(tmp_path: Path) -> None:
    """An IPv6 listener serves, and the client's address is its own."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with gunicorn(tmp_path, "-b", "[::1]:0") as server:
        assert fetch(server.dial())["client"] == "::1"


def test_serves_tls(tmp_path: Path) -> None:
    """TLS is served with the configured certificate, keep-alive included; plain HTTP on that port harms nobody."""
    write_certificate(tmp_path)
    with gunicorn(tmp_path, "--certfile", "certificate.pem", "--keyfile", "key.pem") as server:
        with socket.create_connection(server.address, PATIENCE) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(4096):
                    pass
        trust = ssl.create_default_context(cadata=CERTIFICATE)
        client = http.client.HTTPSConnection(*server.address, timeout=PATIENCE, context=trust)
        answers = [fetch(client, body=b"x" * size) for size in (1, 300_000)]

        assert [(answer["scheme"], answer["size"]) for answer in answers] == [("https", 1), ("https", 300_000)]
        client.request("GET", "/", headers={"Connection": "close"})
        assert client.getresponse().status == 200


def test_term_waits_for_a_slow_reader_on_tls(tmp_path: Path) -> None:
    """What uvloop has encrypted and the peer has not taken is on its way still: longer than lingering takes."""
    app = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"x" * 1_000_000]
"""
    options = ("--certfile", "certificate.pem", "--keyfile", "key.pem")
    write_certificate(tmp_path)
    with gunicorn(tmp_path, *options, app=app, ready=False) as server, socket.socket() as plain:
        until(lambda: "Listening at" in server.log and server.workers, server)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        plain.settimeout(PATIENCE)
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


def half(server: Gunicorn) -> http.client.HTTPConnection:
    """Return a client in the middle of its request."""
    client = server.dial()
    client.putrequest("POST", "/")
    client.putheader("Content-Length", "4")
    client.endheaders(b"ab")
    return client


def test_too_many_connections(tmp_path: Path) -> None:
    """At worker_connections, none of them idle, a client is told 503 and when to come back, and those inside are not
    disturbed.
    """
    with gunicorn(tmp_path, "--worker-connections", "3") as server:
        clients = [half(server) for _ in range(3)]
        refused = server.dial()
        refused.request("GET", "/")
        response = refused.getresponse()
        problem = json.loads(response.read())

        assert (503, "1", "close") == (response.status, response.headers["retry-after"], response.headers["connection"])
        assert ("too_many_connections", 503) == (problem["code"], problem["status"])
        for client in clients:
            assert client.sock is not None
            client.sock.sendall(b"cd")
            assert client.getresponse().status == 200


def test_the_longest_idle_makes_room(tmp_path: Path) -> None:
    """In a full worker a new connection takes the place of the one that was idle longest; one by one, no other."""
    with gunicorn(tmp_path, "--worker-connections", "4") as server:
        busy, *idle = half(server), server.dial(), server.dial(), server.dial()
        for client in idle:
            fetch(client)
        for client in idle[1:]:
            server.beat(3)  # so that the worker's clock, too, knows who was last
            fetch(client)
        server.beat(IDLE_BEATS)
        newcomer = server.dial()
        fetch(newcomer)

        assert idle[0].sock is not None
        assert idle[0].sock.recv(1) == b""
        for client in (*idle[1:], newcomer):
            fetch(client)
        assert busy.sock is not None
        busy.sock.sendall(b"cd")
        assert busy.getresponse().status == 200


def test_all_idle_ones_may_make_room(tmp_path: Path) -> None:
    """However many come at once: each takes the place of an idle one, and nobody is refused."""
    with gunicorn(tmp_path, "--worker-connections", "8") as server:
        idle = [server.dial() for _ in range(8)]
        server.beat(IDLE_BEATS)
        newcomers = [server.dial() for _ in range(8)]

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
    """Of 32 connections to two workers neither gets more than 24, however the kernel wakes them."""
    with gunicorn(tmp_path, "-w", "2", "--preload", app=APP + SHARING) as server:
        until(lambda: len(server.notes("open")) == 2)
        clients = [server.dial() for _ in range(32)]
        shares = Counter(fetch(client)["pid"] for client in clients)

        assert len(shares) == 2
        assert max(shares.values()) <= 24, shares


def test_wedged_neighbour_starves_nobody(tmp_path: Path) -> None:
    """When the emptier worker takes nothing, its neighbour takes the connections after a short wait."""
    alone = "\nclass Never(Rows):\n    def fewest(self): return 0\nRows = Never\n"
    with gunicorn(tmp_path, app=APP + SHARING + alone) as server:
        clients = [server.dial() for _ in range(20)]

        assert {fetch(client)["pid"] for client in clients} == {server.workers[0]}


def test_out_of_descriptors(tmp_path: Path) -> None:
    """Without descriptors accepting pauses, with one line in the log; it resumes when they are back."""
    app = (
        APP
        + """
import resource
class Poor(App):
    def open(self, worker):
        super().open(worker)
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 24, used + 24))
app = Poor()
"""
    )
    with gunicorn(tmp_path, app=app) as server:
        clients = [server.dial() for _ in range(48)]
        until(lambda: "Cannot accept" in server.log, server)
        time.sleep(0.5)
        for client in clients[:40]:
            client.close()
        for client in clients[40:]:
            fetch(client)

        # It is said when a try to accept finds nobody, which may be with the next one who comes.
        until(lambda: fetch(server.dial()) and "Accepting connections again" in server.log, server)
        assert server.log.count("Cannot accept") == 1


# -- ending ----------------------------------------------------------------------------------------------------------


def test_term_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """SIGTERM: the request being computed is answered, with Connection: close; silent connections end; the status is
    0.
    """
    with gunicorn(tmp_path) as server:
        silent, slow, cut = server.dial(), server.dial(), half(server)
        fetch(silent)
        slow.request("GET", "/slow")
        until(lambda: server.notes("slow"))
        server.signal(signal.SIGTERM)
        until(lambda: "Handling signal: term" in server.log)
        assert silent.sock is not None
        assert silent.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            server.dial()
        assert cut.sock is not None
        cut.sock.sendall(b"cd")
        (tmp_path / "gate").touch()

        for client in (slow, cut):
            response = client.getresponse()
            assert (200, "close") == (response.status, response.headers["connection"])
        assert server.wait() == 0
        assert len(server.notes("close")) == 1


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_quit_does_not_wait(tmp_path: Path, number: int) -> None:
    """SIGQUIT and SIGINT end the server at once, whatever it is doing."""
    with gunicorn(tmp_path, "--graceful-timeout", "3600") as server:
        client = server.dial()
        client.request("GET", "/slow")
        until(lambda: server.notes("slow"))
        server.signal(number)

        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_hup_fails_no_request(tmp_path: Path) -> None:
    """Reloading twice under load replaces the workers and fails no request."""
    with gunicorn(tmp_path, "-w", "2") as server:
        until(lambda: len(server.notes("open")) == 2)
        loads = [Load(server) for _ in range(4)]

        def replaced(opened: int) -> bool:
            return len(server.notes("open")) == opened and len(server.workers) == 2

        for opened in (4, 6):
            server.signal(signal.SIGHUP)
            until(partial(replaced, opened), server)
        served = sum(sum(load.pids.values()) for load in loads)
        until(lambda: sum(sum(load.pids.values()) for load in loads) > served + 100)
        for load in loads:
            load.end()

        assert [failure for load in loads for failure in load.failures] == []
        assert len(set().union(*(load.pids for load in loads))) > 2


def test_max_requests_fails_no_request(tmp_path: Path) -> None:
    """Workers that are replaced after a number of requests fail none of them."""
    with gunicorn(tmp_path, "-w", "2", "--max-requests", "300", "--max-requests-jitter", "100") as server:
        loads = [Load(server) for _ in range(4)]
        until(lambda: len(server.notes("open")) >= 5, server)
        for load in loads:
            load.end()

        assert [failure for load in loads for failure in load.failures] == []
        assert server.notes("close")


def test_usr1_reopens_the_log(tmp_path: Path) -> None:
    """SIGUSR1 reopens the log files and disturbs nobody."""
    with gunicorn(tmp_path, "--error-logfile", "error.log", ready=False) as server:
        log = tmp_path / "error.log"
        until(lambda: server.notes("open"))
        (worker,) = server.workers
        log.rename(tmp_path / "old.log")
        server.signal(signal.SIGUSR1)
        until(log.exists)
        os.kill(worker, signal.SIGUSR1)
        os.kill(worker, signal.SIGTERM)

        until(lambda: f"Worker exiting (pid: {worker})" in log.read_text())


def test_wedged_worker_is_replaced_and_says_where_it_stood(tmp_path: Path) -> None:
    """A loop that stands still misses its heartbeat: the arbiter aborts the worker, which prints its stack and is
    replaced.
    """
    with gunicorn(tmp_path, "--timeout", "2") as server:
        (worker,) = server.workers
        client = server.dial()
        client.request("GET", "/wedge")
        until(lambda: len(server.notes("open")) == 2, server)

        assert worker not in server.workers
        assert "Fatal Python error: Aborted" in server.log
        assert re.search(r'served\.py", line \d+ in __call__', server.log)
        fetch(server.dial())


def test_worker_dies_with_its_arbiter(tmp_path: Path) -> None:
    """When the arbiter is killed, no orphan goes on serving."""
    with gunicorn(tmp_path, "-w", "2") as server:
        until(lambda: len(server.notes("open")) == 2)
        workers = [psutil.Process(pid) for pid in server.workers]
        server.signal(signal.SIGKILL)

        _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
        assert alive == []


# -- booting ---------------------------------------------------------------------------------------------------------

FRAGILE = """
if (HERE / "broken").exists():
    {failure}
"""


def test_first_boot_fails_loudly(tmp_path: Path) -> None:
    """A server whose very first worker cannot boot halts with Gunicorn's own status for it."""
    (tmp_path / "broken").touch()
    with gunicorn(tmp_path, app=APP + FRAGILE.format(failure="raise ValueError('broken')"), ready=False) as server:
        assert server.wait() == 3
        assert "ValueError: broken" in server.log


@pytest.mark.parametrize("failure", ["raise ValueError('broken')", "raise SystemExit(3)", "import nowhere_to_be_found"])
def test_later_boot_does_not_halt_the_server(tmp_path: Path, failure: str) -> None:
    """After the first boot a worker that cannot boot is tried again, and the server recovers when the cause is gone."""
    with gunicorn(tmp_path, app=APP + FRAGILE.format(failure=failure)) as server:
        fetch(server.dial())
        (tmp_path / "broken").touch()
        server.signal(signal.SIGHUP)
        until(lambda: server.log.count("exited with code 1.") >= 2, server)
        (tmp_path / "broken").unlink()
        until(lambda: len(server.notes("open")) == 2, server)

        fetch(server.dial())
        assert server.process.poll() is None


def test_open_that_fails_is_a_failed_boot(tmp_path: Path) -> None:
    """An application that cannot be opened halts the server at its first start."""
    app = APP + "\nclass Shut(App):\n    def open(self, worker): raise OSError('no block')\napp = Shut()\n"
    with gunicorn(tmp_path, app=app, ready=False) as server:
        assert server.wait() == 3
        assert "OSError: no block" in server.log


def test_term_while_opening_waits(tmp_path: Path) -> None:
    """A worker that is told to end while its application opens ends in order: what was taken is given back."""
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
        until(lambda: len(server.notes("open")) == 3, server)

        first = server.notes("open")[0]
        assert server.notes("close") == [first]
        assert first not in server.workers


def test_reload(tmp_path: Path) -> None:
    """With --reload a change of the source replaces the worker."""
    with gunicorn(tmp_path, "--reload", "--reload-engine", "poll") as server:
        fetch(server.dial())
        source = tmp_path / "served.py"
        source.write_text(APP.replace('"scheme": environ["wsgi.url_scheme"]', '"scheme": "changed"'))
        changes = itertools.count(round(time.time()))

        def replaced() -> bool:
            """A change that comes before the reloader has looked once is none to it: make another one."""
            if len(server.notes("open")) == 1:
                os.utime(source, (0, next(changes)))
            return len(server.notes("open")) > 1

        until(replaced, server)

        assert fetch(server.dial())["scheme"] == "changed"
