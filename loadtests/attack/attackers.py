"""Hostile clients: one process that holds many connections cheaply.

    python -m loadtests.attack.attackers PORT COUNT KINDS

KINDS, separated by commas, share the connections: `head` sends a head one byte a second; `body` sends a body likewise;
`read` pipelines requests for the largest pages of the log and never reads; `greedy` sends requests by the hundred and
reads the answers at full speed. A connection that the server ends is replaced by one of its kind after half a second.

For each line on its standard input the program prints one line of JSON: how the connections ended so far, and its own
CPU use. It ends when its standard input does, with a last such line.

Perf: one event loop and no task per connection, so that the measurement next to it shows the server and not this
program.
"""

import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any, Final

import uvloop

SLOW_HEAD: Final = b"POST /event HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"s" * 4_000
SLOW_BODY: Final = (
    b"POST /event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 4000\r\n\r\n"
)
UNREAD_REQUESTS: Final = b"GET /decisions?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 16
GREEDY_REQUESTS: Final = b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
SLICES: Final = 200  # slices per second, so that bytes and connections do not come in bursts
OPENED_PER_SLICE_MAX: Final = 10  # 2,000 connections a second


class SlowClient(asyncio.Protocol):
    """One connection of one kind."""

    def __init__(self, pool: "AttackerPool", kind: str) -> None:
        self.pool = pool
        self.kind = kind
        self.sent = 0
        self.answer = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection; a body starts with its head."""
        self.transport = transport
        self.pool.add(self)
        if self.kind == "body":
            self.transport.write(SLOW_BODY)

    def trickle(self) -> None:
        """Send one byte more."""
        self.transport.write(SLOW_HEAD[self.sent : self.sent + 1] if self.kind == "head" else b"b")
        self.sent += 1

    def data_received(self, data: bytes) -> None:
        """Keep the beginning of the answer."""
        self.answer = self.answer or data[:12]

    def connection_lost(self, error: Exception | None) -> None:
        """Record the server's answer, if any."""
        self.pool.remove(self, "reset" if error else self.answer[9:].decode("latin-1") or "closed")


class GreedyClient(asyncio.Protocol):
    """A connection that always sends ahead of its answers."""

    kind = "greedy"

    def __init__(self, pool: "AttackerPool") -> None:
        self.pool = pool
        self.transport: Any = None
        self.paused = False
        self.refusal = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection and send the first requests."""
        self.transport = transport
        self.pool.add(self)
        self.transport.write(GREEDY_REQUESTS)

    def pause_writing(self) -> None:
        """Stop sending: the server does not read."""
        self.paused = True

    def resume_writing(self) -> None:
        """Resume sending."""
        self.paused = False

    def data_received(self, data: bytes) -> None:
        """Count answers, and send more unless paused."""
        self.pool.answered += data.count(b"HTTP/1.1 200")
        if (at := data.find(b"HTTP/1.1 5")) >= 0:
            self.refusal = data[at + 9 : at + 12].decode()
        if not self.paused:
            self.transport.write(GREEDY_REQUESTS)

    def trickle(self) -> None:
        """Do nothing: a greedy client sends on every answer."""

    def connection_lost(self, error: Exception | None) -> None:
        """Record how the connection ended."""
        self.pool.remove(self, self.refusal or ("reset" if error else "closed"))


class NonReadingClient:
    """A connection that sends requests and never reads: a bare socket, because an event loop would read."""

    kind = "read"

    def __init__(self, pool: "AttackerPool", endpoint: socket.socket) -> None:
        self.pool, self.endpoint = pool, endpoint
        endpoint.send(UNREAD_REQUESTS)
        pool.add(self)

    def trickle(self) -> None:
        """Send an empty line, which is ignored between requests; an error shows that the server disconnected."""
        try:
            self.endpoint.send(b"\r\n")
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            self.pool.remove(self, "cut")

    def abort(self) -> None:
        """Close the socket."""
        self.endpoint.close()

    @property
    def transport(self) -> "NonReadingClient":
        return self


Attacker = SlowClient | GreedyClient | NonReadingClient


class AttackerPool:
    """All hostile connections of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, count: int, kinds: list[str]) -> None:
        self.loop, self.port = loop, port
        self.wanted = [kinds[number % len(kinds)] for number in range(count)]
        self.slices: list[set[Attacker]] = [set() for _ in range(SLICES)]
        self.turn = 0
        self.ends: Counter[str] = Counter()
        self.opening: set[asyncio.Task[Any]] = set()
        self.stopping = False
        self.open_max = 0
        self.answered = 0  # answers to greedy clients

    @property
    def open_count(self) -> int:
        return sum(map(len, self.slices))

    def add(self, client: Attacker) -> None:
        self.slices[self.turn % SLICES].add(client)

    def remove(self, client: Attacker, end: str) -> None:
        for members in self.slices:
            if client in members:
                members.discard(client)
                break
        if not self.stopping:
            self.ends[f"{client.kind} {end}"] += 1
            self.loop.call_later(0.5, self.wanted.append, client.kind)

    def run_slice(self) -> None:
        """Run 200 times a second: one of 200 slices sends its bytes, and missing connections are opened."""
        if self.stopping:
            return
        self.loop.call_later(1 / SLICES, self.run_slice)
        self.turn += 1
        for client in tuple(self.slices[self.turn % SLICES]):
            client.trickle()
        for _ in range(min(OPENED_PER_SLICE_MAX, len(self.wanted))):
            task = self.loop.create_task(self.open(self.wanted.pop()))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)
        self.open_max = max(self.open_max, self.open_count)

    async def open(self, kind: str) -> None:
        """Open a connection; one that never reads has a tiny receive buffer."""
        endpoint = socket.socket()
        endpoint.setblocking(False)
        # Close with RST: otherwise the server, rightly, goes on answering clients that shut only their own side.
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if kind == "read":
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        try:
            await self.loop.sock_connect(endpoint, ("127.0.0.1", self.port))
            if kind == "read":
                NonReadingClient(self, endpoint)
            else:
                made = GreedyClient(self) if kind == "greedy" else SlowClient(self, kind)
                await self.loop.create_connection(lambda: made, sock=endpoint)
        except OSError as error:
            endpoint.close()
            self.ends[f"{kind} {type(error).__name__}"] += 1
            self.wanted.append(kind)

    def stop(self) -> None:
        """Disconnect all at once."""
        self.stopping = True
        for members in self.slices:
            for client in tuple(members):
                client.transport.abort()
        self.loop.call_later(0.2, self.loop.stop)


def main() -> None:
    """Run the program."""
    port, count, kinds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    loop = uvloop.new_event_loop()
    pool = AttackerPool(loop, port, count, kinds)
    began, spent = time.monotonic(), time.process_time()

    def report() -> None:
        share = (time.process_time() - spent) / (time.monotonic() - began)
        figures = {"open": pool.open_max, "answered": pool.answered, "ends": pool.ends, "cpu": round(share, 3)}
        print(json.dumps(figures), flush=True)

    def asked() -> None:
        if os.read(sys.stdin.fileno(), 1):
            report()
        else:
            loop.remove_reader(sys.stdin.fileno())
            pool.stop()

    loop.add_reader(sys.stdin.fileno(), asked)
    loop.call_soon(pool.run_slice)
    loop.run_forever()
    report()


if __name__ == "__main__":
    main()
