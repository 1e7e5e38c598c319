"""Honest clients at a steady pace, in a separate process that measures their latencies.

    python -m loadtests.attack.steady_client PORT CLIENTS SECONDS DIMENSION

Each client has one keep-alive connection: it posts a raw event, waits for the answer, pauses for 10 ms, and repeats.
Prints one line of JSON: the latencies in seconds, and every answer that was not 200.
"""

import array
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any, Final

import uvloop

THINK_SECONDS: Final = 0.010


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, latencies: list[float], failures: Counter[str]) -> None:
        self.request, self.latencies, self.failures = request, latencies, failures
        self.loop = asyncio.get_running_loop()
        self.sent = 0.0
        self.received = b""
        self.done = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send one request."""
        if not self.done:
            self.sent = time.perf_counter()
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Collect an answer; when it is complete, pause and send again."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]):
            return
        self.latencies.append(round(time.perf_counter() - self.sent, 6))
        if self.received[9:12] != b"200":
            self.failures[f"{self.received[9:12].decode('latin-1')} {json.loads(body)['code']}"] += 1
        self.received = b""
        self.loop.call_later(THINK_SECONDS, self.ask)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done:
            self.failures["connection lost"] += 1


async def measure(port: int, clients: int, seconds: float, dimension: int) -> dict[str, Any]:
    """Let the clients send requests for `seconds`."""
    body = array.array("f", [0.1] * dimension).tobytes()
    head = "POST /event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nMoral-Value: 0.8\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    members = []
    for _ in range(clients):
        _, client = await loop.create_connection(lambda: Client(request, latencies, failures), "127.0.0.1", port)
        members.append(client)
        await asyncio.sleep(THINK_SECONDS / clients)
    await asyncio.sleep(seconds)
    for client in members:
        client.done = True
        client.transport.close()
    return {"latencies": latencies, "failures": failures}


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    print(json.dumps(uvloop.run(measure(*numbers))))
