"""Clients that send events under faults, retry until they are answered, and record every answer.

Each client is a process with one keep-alive connection. It sends single events and batches with idempotency keys and
repeats a request with the same key until it is answered: on a new connection when the old one ended, `PAUSE_SECONDS`
after a refused connection or a 5xx. It ignores Retry-After: the faults measure how soon the server serves again.

Events have consecutive numbers. `Events` maps a number to a unique moral value and to a vector, so that a log entry,
which holds the moral value, identifies its event; the content of every slot follows from the log (judge.py).

Records: each acknowledged decision (`DECISION_ROW`), each request with its times (`REQUEST_ROW`), each failed attempt
(`FailedAttempt`). A request that is open when the load stops gets `FINISH_SECONDS`. It is then recorded as unanswered,
because it may have been decided. A 4xx ends the client, and `Load.stop` raises it: a retry would not help.

Rejected: threads (the interpreter's lock would make a client stall with a busy neighbour) and
`mlsdm.replaying.connection` (it honours Retry-After, and gives up).
"""

import mmap
import multiprocessing
import os
import random
import select
import socket
import time
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from shm import process
from testing.eventually import eventually

CLIENTS: Final = 4
CLIENTS_NICE: Final = 10  # clients stand for other machines and must not delay the server's processes
BATCH_MAX: Final = 32  # events
BATCH_SHARE: Final = 1 / 16  # of the requests
PAUSE_SECONDS: Final = 0.005  # before a request is sent again after a refusal or a refused connection
SILENCE_SECONDS: Final = 10.0  # timeout of an answer; the request is then sent again
CONNECTION_REQUESTS: Final = 250  # per connection, so that replaced workers get their share
FINISH_SECONDS: Final = 20.0  # for a request that is open when the load stops
_MORAL_BITS: Final = 26  # 6.7 × 10⁷ events of a run have moral values of their own
_SPREAD: Final = 0x2545F49  # odd, so that numbers and moral values correspond one to one; large, so that they mix
_UNSPREAD: Final = pow(_SPREAD, -1, 1 << _MORAL_BITS)
_VECTORS: Final = 509  # a prime, so that every client uses all vectors
_FORK: Final = multiprocessing.get_context("fork")  # a child starts at once
_JOIN_SECONDS: Final = 30.0

DECISION_ROW: Final = np.dtype(
    [
        ("number", "<i8"),  # of the event
        ("position", "<i8"),
        ("sequence", "<i8"),
        ("memory_id", "<i8"),  # 0 when it was rejected
        ("moral", "<f8"),
        ("theta_before", "<f8"),
        ("theta_after", "<f8"),
        ("ema", "<f8"),
    ]
)
REQUEST_ROW: Final = np.dtype([("began", "<f8"), ("ended", "<f8"), ("count", "<i8")])  # monotonic seconds; events
Table = NDArray[Any]


class Events:
    """The events of a run, by number."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        vectors = np.random.default_rng(20251122).standard_normal((_VECTORS, dimension)).astype("<f4")
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def moral(self, number: int) -> float:
        """Return the moral value of an event: another one for every number below 2 ** 26."""
        return ((number * _SPREAD) % (1 << _MORAL_BITS)) / (1 << _MORAL_BITS)

    def number_of(self, moral: float) -> int:
        """Return the number of the event that has a moral value."""
        return (round(moral * (1 << _MORAL_BITS)) * _UNSPREAD) % (1 << _MORAL_BITS)

    def vector(self, number: int) -> NDArray[np.float32]:
        """Return float32[dimension]."""
        vector: NDArray[np.float32] = self.vectors[number % _VECTORS]
        return vector


class FailedAttempt(NamedTuple):
    """An attempt without a usable answer: begin and end (monotonic seconds), and the reason.

    `what` is `unreachable`, `lost` (the connection ended first), `silent`, or a status and the code of its problem.
    """

    began: float
    ended: float
    what: str


class ClientRecords(NamedTuple):
    """The records of the clients of a load."""

    decided: Table  # DECISION_ROW, by number
    requests: list[Table]  # REQUEST_ROW of each client, in order
    failed_attempts: list[FailedAttempt]
    unanswered: list[int]  # numbers of events that were sent and not answered until the end

    def stalls(self) -> list[tuple[float, float]]:
        """Return, for each client, its longest time without an acknowledged answer in seconds, and when it began."""
        longest = []
        for requests in self.requests:
            moments = np.concatenate((requests["began"][:1], requests["ended"]))
            gaps = np.diff(moments)
            where = int(np.argmax(gaps)) if len(gaps) else 0
            longest.append((float(gaps[where]), float(moments[where])) if len(gaps) else (0.0, 0.0))
        return longest

    def answers_between(self, began: float, ended: float) -> int:
        """Return how many requests were answered from one moment to another."""
        return sum(
            int(((requests["ended"] > began) & (requests["ended"] <= ended)).sum()) for requests in self.requests
        )


class _Decision(msgspec.Struct):
    sequence: int
    position: int
    moral_value: float
    threshold_before: float
    moral_filter_threshold: float
    ema: float
    memory_id: int = 0


class _Batch(msgspec.Struct):
    results: list[_Decision]


class _Problem(msgspec.Struct):
    code: str = ""


_decision = msgspec.json.Decoder(_Decision).decode
_batch = msgspec.json.Decoder(_Batch).decode
_problem = msgspec.json.Decoder(_Problem).decode


class Load:
    """Clients of the server on `port`, each of which rests for `pause_seconds` between two requests.

    Events are numbered from `first`; `seed` decides which are batched.
    """

    def __init__(
        self,
        port: int,
        events: Events,
        seed: int,
        clients: int = CLIENTS,
        first: int = 0,
        *,
        pause_seconds: float = 0.0,
    ) -> None:
        self._port = port
        self._events = events
        self._seed = seed
        self._first = first
        self._pause_seconds = pause_seconds
        self._count = clients
        self._shared = mmap.mmap(-1, 8 * (1 + clients))
        self._cells = np.frombuffer(self._shared, "<i8")  # whether to stop; then events answered, by client
        self._members: list[tuple[Any, Connection]] = []

    def start(self) -> Self:
        """Start the clients; returns at once."""
        for number in range(self._count):
            ours, theirs = _FORK.Pipe(duplex=False)
            member = _FORK.Process(target=self._run_client, args=(number, os.getpid(), theirs), daemon=True)
            member.start()
            theirs.close()
            self._members.append((member, ours))
        return self

    @property
    def answered(self) -> int:
        """Events that were acknowledged so far."""
        return int(self._cells[1:].sum())

    @property
    def answered_by_client(self) -> list[int]:
        """Events that each client has acknowledged so far."""
        return [int(count) for count in self._cells[1:]]

    @property
    def alive(self) -> bool:
        """Whether all clients go on."""
        return all(member.is_alive() for member, _ in self._members)

    def await_all(self) -> None:
        """Wait until every client was answered once more: the server serves. Fails when that takes too long."""
        before = self.answered_by_client

        def served() -> bool:
            assert self.alive, "a client has ended"
            return all(now > then for now, then in zip(self.answered_by_client, before, strict=True))

        eventually(served)

    def stop(self) -> ClientRecords:
        """Let every client finish its request; return their records.

        Raises RuntimeError when one of them ended by itself.
        """
        self._cells[0] = 1
        records = []
        for member, ours in self._members:
            if not ours.poll(FINISH_SECONDS + SILENCE_SECONDS + _JOIN_SECONDS):
                raise RuntimeError(f"client {member.pid} does not stop")
            try:
                records.append(ours.recv())
            except EOFError:
                raise RuntimeError(f"client {member.pid} died") from None
            member.join(_JOIN_SECONDS)
        self.end()
        for error in records:
            if isinstance(error, str):
                raise RuntimeError(error)
        decided = np.concatenate([np.frombuffer(one[0], DECISION_ROW) for one in records])
        return ClientRecords(
            decided[np.argsort(decided["number"], kind="stable")],
            [np.frombuffer(one[1], REQUEST_ROW) for one in records],
            sorted(miss for one in records for miss in one[2]),
            sorted(number for one in records for number in one[3]),
        )

    def end(self) -> None:
        """End the clients at once, if there are any left."""
        for member, ours in self._members:
            member.kill()
            member.join(_JOIN_SECONDS)
            ours.close()
        self._members.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def _run_client(self, number: int, parent: int, channel: Connection) -> None:
        process.die_with_parent(parent)
        os.nice(CLIENTS_NICE)
        client = _Client(self._port, self._events, self._cells, number, self._pause_seconds)
        chance = random.Random((self._seed << 8) + number)
        try:
            client.run(range(self._first + number, 1 << _MORAL_BITS, self._count), chance)
        except Exception as error:  # noqa: BLE001 - the parent reports any error
            channel.send(f"client {number} ended: {error!r}")
        else:
            channel.send((bytes(client.decided), bytes(client.requests), client.failed_attempts, client.unanswered))


class _Client:
    """One client, in its own process. `cells` are those of the load."""

    def __init__(self, port: int, events: Events, cells: Table, member: int, pause_seconds: float) -> None:
        self.decided, self.requests = bytearray(), bytearray()
        self.failed_attempts: list[FailedAttempt] = []
        self.unanswered: list[int] = []
        self._port = port
        self._events = events
        self._cells = cells
        self._member = member
        self._pause_seconds = pause_seconds
        self._run = os.urandom(6).hex()  # makes the keys unique to this load
        self._socket: socket.socket | None = None
        self._left = 0  # requests of this connection

    def run(self, numbers: range, chance: random.Random) -> None:
        """Send events with these numbers, in order, until stopped."""
        at = 0
        while not self._cells[0]:
            count = chance.randint(2, BATCH_MAX) if chance.random() < BATCH_SHARE else 1
            mine = numbers[at : at + count]
            at += count
            began = time.monotonic()
            body = self._send_until_answered(self._request(mine))
            if body is None:
                self.unanswered += mine
                return
            decisions = [_decision(body)] if count == 1 else _batch(body).results
            rows = [
                (
                    number, one.position, one.sequence, one.memory_id, one.moral_value,
                    one.threshold_before, one.moral_filter_threshold, one.ema,
                )
                for number, one in zip(mine, decisions, strict=True)
            ]  # fmt: skip
            self.decided += np.array(rows, DECISION_ROW).tobytes()
            self.requests += np.array((began, time.monotonic(), count), REQUEST_ROW).tobytes()
            self._cells[1 + self._member] += count
            if self._pause_seconds:
                time.sleep(self._pause_seconds)

    def _request(self, numbers: range) -> bytes:
        """Return POST /event of one event, or POST /events of many, with the key of the first."""
        events = self._events
        if len(numbers) == 1:
            head, body = f"POST /event HTTP/1.1\r\nMoral-Value: {events.moral(numbers[0])!r}\r\n", b""
        else:
            head = "POST /events HTTP/1.1\r\n"
            body = np.array([events.moral(number) for number in numbers], "<f8").tobytes()
        body += b"".join([events.vector(number).tobytes() for number in numbers])
        head += f"Host: localhost\r\nIdempotency-Key: {self._run}-{numbers[0]}\r\n"
        head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def _send_until_answered(self, request: bytes) -> bytes | None:
        """Send a request until it is answered with 200; returns that body, None when the load ended before."""
        stop_at = 0.0
        while True:
            began = time.monotonic()
            if self._cells[0]:
                stop_at = stop_at or began + FINISH_SECONDS
                if began > stop_at:
                    return None
            try:
                status, body = self._send_once(request)
            except (OSError, EOFError) as error:
                self._close()
                what = "silent" if isinstance(error, TimeoutError) else "lost"
                if isinstance(error, ConnectionRefusedError):
                    what = "unreachable"
                    time.sleep(PAUSE_SECONDS)
            else:
                if status == 200:
                    return body
                what = f"{status} {_code(body)}"
                if status < 500:
                    raise RuntimeError(f"{what}: {body!r}")
                time.sleep(PAUSE_SECONDS)
            self.failed_attempts.append(FailedAttempt(began, time.monotonic(), what))

    def _send_once(self, request: bytes) -> tuple[int, bytes]:
        """Send a request once; returns status and body. Raises OSError and EOFError."""
        sock = self._socket
        if sock and select.select([sock], [], [], 0)[0]:  # the server has closed the idle connection
            self._close()
            sock = None
        if not sock:
            self._left = CONNECTION_REQUESTS
            sock = self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=SILENCE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request)
        octets = b""
        while True:
            piece = sock.recv(65_536)
            if not piece:
                raise EOFError
            octets += piece
            head, end, body = octets.partition(b"\r\n\r\n")
            if end:
                fields = head.lower()
                if len(body) >= int(fields.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]):
                    break
        self._left -= 1
        if not self._left or b"\r\nconnection: close" in fields:
            self._close()
        return int(head[9:12]), body

    def _close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


def _code(body: bytes) -> str:
    """Return the code of a problem document; nothing when it is none."""
    try:
        return _problem(body).code
    except msgspec.MsgspecError:
        return ""
