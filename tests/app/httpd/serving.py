"""A worker's connections with real sockets and a real loop, in a thread of the test, and a strict client for them.

The clock of the deadlines stands still unless a test moves it (`RunningServer.advance`) or lets it run (`clock_step`),
so no deadline ends a connection because the machine is busy.
"""

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
from app.httpd.tls import TlsLayer
from app.httpd.worker_state import WorkerState
from testing.eventually import HANG_SECONDS, eventually
from tests.app.httpd.certificate import CERTIFICATE, write_certificate

BEAT_SECONDS = 0.01  # between two sweeps of the deadlines

HOST = b"Host: a\r\n"
GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def get(target: bytes, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Return the bytes of a GET request."""
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Return the bytes of a POST request to /."""
    return b"POST / HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n" + body


# -- applications ------------------------------------------------------------------------------------------------------


class EchoApplication:
    """Answers with the environ and the body as JSON. /slow… waits on the pool until `gate` opens; /big answers `size`
    bytes.
    """

    size = 262_144

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.refusals: Counter[str] = Counter()
        self.calls: list[str] = []  # the paths, in order
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
            assert self.gate.wait(HANG_SECONDS)
        if path == "/big":
            start_response("200 OK", [])
            return [b"x" * self.size]
        body = environ["wsgi.input"].read()
        members = {k: v for k, v in environ.items() if isinstance(v, str | int)}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"environ": members, "body": body.decode("latin-1")}).encode()]


class SelectiveApplication(EchoApplication):
    """An echo that wants no body for paths ending in /no, and raises when it is asked about /maybe."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool]] = []  # path, and whether there was a body already

    def wants_body(self, environ: dict[str, Any]) -> bool:
        self.asked.append((environ["PATH_INFO"], "wsgi.input" in environ))
        if environ["PATH_INFO"] == "/maybe":
            raise ValueError("cannot say")
        return not environ["PATH_INFO"].endswith("/no")


# -- the server --------------------------------------------------------------------------------------------------------


class ByteByByteConnection(Connection):
    """A connection that receives each byte in a read of its own."""

    def data_received(self, data: bytes) -> None:
        for i in range(len(data)):
            super().data_received(data[i : i + 1])


@dataclass
class RunningServer:
    """A worker's connections that are being served, and the parts of them that a test may examine."""

    address: tuple[str, int]
    worker_state: WorkerState
    loop: asyncio.AbstractEventLoop
    app: Any
    trust: ssl.SSLContext | None = None  # what its clients need on TLS
    lost: list[float] = field(default_factory=list)  # the times at which connections ended, on the loop's clock
    by_client: dict[tuple[str, int], Connection] = field(default_factory=dict)  # keys: addresses of the clients

    def run_on_loop(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the loop's thread and return its result."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(HANG_SECONDS)

    def advance(self, seconds: float) -> None:
        """Advance the clock of the deadlines in steps of 0.25 s, with a sweep after each step, and two more sweeps."""
        steps = [0]

        def step() -> None:
            self.worker_state.now += 0.25
            self.worker_state.deadline_sweep.start_sweep()
            steps[0] += 1
            if steps[0] < 4 * seconds + 2:
                self.loop.call_soon(self.loop.call_soon, step)

        self.loop.call_soon_threadsafe(step)
        eventually(lambda: steps[0] >= 4 * seconds + 2)


@contextlib.contextmanager
def serving(
    app: Any = None,
    *,
    protocol: type[Connection] = Connection,
    clock_step: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sndbuf: int = 0,
    tls: bool = False,
) -> Iterator[RunningServer]:
    """Serve `app`, an EchoApplication by default.

    `clock_step` is by how many seconds the clock of the deadlines advances in each beat; 0 means that it stands still.
    Then `clock` measures how long a turn of the loop lasts.
    """
    context, trust = tls_contexts() if tls else (None, None)
    app = app or EchoApplication()
    loop = uvloop.new_event_loop()
    listener = socket.socket()
    if sndbuf:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    listener.bind(("127.0.0.1", 0))
    started = threading.Event()
    holder: list[RunningServer] = []

    class RegisteredConnection(protocol):  # type: ignore[valid-type,misc]  # its base is a parameter
        """A connection that a test finds by the address of its client."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            holder[0].by_client[transport.get_extra_info("peername")] = self
            super().connection_made(transport)

    async def main() -> None:
        moment = [1e6]
        scheme = "http" if context is None else "https"
        worker_state = WorkerState(
            app, loop, logging.getLogger("test"), scheme=scheme, clock=(lambda: moment[0]) if clock_step else clock
        )

        def make() -> Any:
            connection = RegisteredConnection(worker_state, ("127.0.0.1", 4242))
            return connection if context is None else TlsLayer(loop, connection, context)

        holder.append(RunningServer(listener.getsockname(), worker_state, loop, app, trust))
        worker_state.on_connection_lost = lambda: holder[0].lost.append(loop.time())
        await loop.create_server(make, sock=listener)

        def beat() -> None:
            moment[0] += clock_step
            if clock_step:
                worker_state.tick()
            worker_state.deadline_sweep.start_sweep()
            loop.call_later(BEAT_SECONDS, beat)

        beat()
        started.set()

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_default_executor())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(HANG_SECONDS)
    try:
        yield holder[0]
    finally:
        if isinstance(app, EchoApplication):
            app.gate.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_SECONDS)
        holder[0].worker_state.close()
        loop.close()


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a TLS server and of its clients."""
    with tempfile.TemporaryDirectory() as directory:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*write_certificate(Path(directory)))
    return context, ssl.create_default_context(cadata=CERTIFICATE)


def server_sides(server: RunningServer, *clients: socket.socket) -> list[Connection]:
    """Return the server's connection of each client, once it has been made."""
    addresses = [client.getsockname() for client in clients]
    eventually(lambda: server.by_client.keys() >= set(addresses))
    return [server.by_client[address] for address in addresses]


# -- its clients -------------------------------------------------------------------------------------------------------


def connect(server: RunningServer, *, rcvbuf: int = 0) -> socket.socket:
    """Return a connected socket, on TLS where the server has it."""
    client = socket.socket()
    if rcvbuf:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    client.settimeout(HANG_SECONDS)
    client.connect(server.address)
    return client if server.trust is None else server.trust.wrap_socket(client, server_hostname="127.0.0.1")


def reset(client: socket.socket) -> None:
    """Close a socket so that the server sees a reset, as when a client is killed."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


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


class AnswerReader:
    """Reads answers from a socket strictly: bytes that are left over or missing fail the test."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.buffer = b""

    def read_answer(self, *, head: bool = False) -> Answer:
        """Read one answer; `head` says that it is one to HEAD and has no content."""
        while b"\r\n\r\n" not in self.buffer:
            self._receive()
        raw, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        status_line, *lines = raw.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = 0 if head else int(headers.get("content-length", "0"))
        while len(self.buffer) < size:
            self._receive()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Answer(int(status_line.split(" ")[1]), headers, body)

    def expect_end(self) -> None:
        """Assert that the server closes and sends nothing more."""
        assert self.buffer == b""
        assert self.client.recv(65_536) == b""

    def _receive(self) -> None:
        piece = self.client.recv(65_536)
        assert piece, f"the connection ended after {self.buffer!r}"
        self.buffer += piece


def fetch(server: RunningServer, request: bytes, count: int = 1) -> list[Answer]:
    """Send `request` on a new connection and return `count` answers."""
    with connect(server) as client:
        client.sendall(request)
        reader = AnswerReader(client)
        return [reader.read_answer() for _ in range(count)]
