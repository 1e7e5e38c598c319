"""A service with real sockets and a real loop, in a thread of the test, and a strict client of it."""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from app.httpd.connection import Connection
from app.httpd.refusal import Refusal
from app.httpd.tls import TlsLayer
from app.httpd.worker_state import WorkerState
from testing.eventually import HANG_SECONDS, eventually
from tests.app.httpd.certificate import CERTIFICATE, write_certificate

PATIENCE = HANG_SECONDS


class Echo:
    """Answers with what the environ said, as JSON; /slow… waits on the pool until `gate` opens, /big answers `size`
    bytes.
    """

    size = 262_144

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.refusals: Counter[str] = Counter()
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def way_of(self, method: str, path: str) -> int:
        return path.startswith("/slow")

    def on_refusal(self, code: str, environ: dict[str, Any], status: int) -> None:
        self.refusals[code] += 1

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.calls.append(path)
        self.threads.add(threading.current_thread().name)
        if path.startswith("/slow"):
            assert self.gate.wait(PATIENCE)
        if path == "/big":
            start_response("200 OK", [])
            return [b"x" * self.size]
        body = environ["wsgi.input"].read()
        seen = {k: v for k, v in environ.items() if isinstance(v, str | int)}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"environ": seen, "body": body.decode("latin-1")}).encode()]


class Choosy(Echo):
    """Wants no body for /no, fails to say for /maybe, and answers 401 to whoever sends none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool]] = []

    def wants_body(self, environ: dict[str, Any]) -> bool:
        self.asked.append((environ["PATH_INFO"], "wsgi.input" in environ))
        if environ["PATH_INFO"] == "/maybe":
            raise ValueError("cannot say")
        return not environ["PATH_INFO"].endswith("/no")


class Dribble(Connection):
    """A connection that sees each byte alone."""

    def data_received(self, data: bytes) -> None:
        for i in range(len(data)):
            super().data_received(data[i : i + 1])


@dataclass
class Server:
    """A running service: its address, and the parts a test may look at."""

    address: tuple[str, int]
    service: WorkerState
    loop: asyncio.AbstractEventLoop
    app: Any
    trust: ssl.SSLContext | None = None  # what its clients need on TLS
    lost: list[float] = field(default_factory=list)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the loop's thread and return its result."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def wait(self, seconds: float) -> None:
        """Have the service's clock go on by `seconds`, and every connection look at its deadlines, more than once."""
        looks = [0]

        def step() -> None:
            self.service.now += 0.25
            self.service.deadline_sweep.start_sweep()
            looks[0] += 1
            if looks[0] < 4 * seconds + 2:
                self.loop.call_soon(self.loop.call_soon, step)

        self.loop.call_soon_threadsafe(step)
        until(lambda: looks[0] >= 4 * seconds + 2)


@contextlib.contextmanager
def serving(
    app: Any = None,
    *,
    protocol: type[Connection] = Connection,
    pace: float = 0.0,
    sndbuf: int = 0,
    refusal: Refusal | None = None,
    tls: bool = False,
) -> Iterator[Server]:
    """Serve `app` (Echo by default). With a `pace`, the service's clock runs that many seconds per 10 ms instead of
    real time.
    """
    context, trust = contexts() if tls else (None, None)
    app = app or Echo()
    loop = uvloop.new_event_loop()
    listener = socket.socket()
    if sndbuf:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    listener.bind(("127.0.0.1", 0))
    started = threading.Event()
    holder: list[Server] = []

    async def main() -> None:
        moment = [1e6]
        clock = (lambda: moment[0]) if pace else time.monotonic
        scheme = "http" if context is None else "https"
        service = WorkerState(app, loop, logging.getLogger("test"), scheme=scheme, clock=clock)

        def make() -> Any:
            connection = protocol(service, ("127.0.0.1", 4242), refusal)
            return connection if context is None else TlsLayer(loop, connection, context)

        await loop.create_server(make, sock=listener)

        def beat() -> None:
            moment[0] += pace
            service.tick()
            service.deadline_sweep.start_sweep()
            loop.call_later(0.01, beat)

        beat()
        holder.append(Server(listener.getsockname(), service, loop, app, trust))
        service.on_connection_lost = lambda: holder[0].lost.append(loop.time())
        started.set()

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_default_executor())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(PATIENCE)
    try:
        yield holder[0]
    finally:
        if isinstance(app, Echo):
            app.gate.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        holder[0].service.close()
        loop.close()


def dial(server: Server, *, rcvbuf: int = 0) -> socket.socket:
    client = socket.socket()
    if rcvbuf:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    client.settimeout(PATIENCE)
    client.connect(server.address)
    return client if server.trust is None else server.trust.wrap_socket(client, server_hostname="127.0.0.1")


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return what a server and its clients need for TLS."""
    with tempfile.TemporaryDirectory() as directory:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*write_certificate(Path(directory)))
    return context, ssl.create_default_context(cadata=CERTIFICATE)


@dataclass
class Answer:
    """One parsed answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def environ(self) -> dict[str, Any]:
        environ = self.json["environ"]
        assert isinstance(environ, dict)
        return environ


class Reader:
    """Reads answers off a socket, strictly: anything left over or missing fails the test."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.buffer = b""

    def answer(self, *, head: bool = False) -> Answer:
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        raw, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        status_line, *lines = raw.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = 0 if head else int(headers.get("content-length", "0"))
        while len(self.buffer) < size:
            self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Answer(int(status_line.split(" ")[1]), headers, body)

    def end(self) -> None:
        """Assert that the server closes and sends nothing more."""
        assert self.buffer == b""
        assert self.client.recv(65_536) == b""

    def _more(self) -> None:
        piece = self.client.recv(65_536)
        assert piece, f"the connection ended after {self.buffer!r}"
        self.buffer += piece


def ask(server: Server, request: bytes, count: int = 1) -> list[Answer]:
    """Send `request` on a connection of its own and return `count` answers."""
    with dial(server) as client:
        client.sendall(request)
        reader = Reader(client)
        return [reader.answer() for _ in range(count)]


def until(condition: Callable[[], bool]) -> None:
    eventually(condition)


HOST = b"Host: a\r\n"
GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n" + body


def get(target: bytes, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n"


def open_connections(server: Server) -> list[Connection]:
    """Return the open connections of a server; to be called on its loop."""
    return [connection for connection in server.service.connections if isinstance(connection, Connection)]


def connections(server: Server, *clients: socket.socket) -> list[Connection]:
    """Return the server's side of each client."""
    until(lambda: server.call(lambda: len(server.service.connections)) == len(clients))
    made = {c._transport.get_extra_info("peername"): c for c in server.call(lambda: open_connections(server))}
    return [made[client.getsockname()] for client in clients]
