"""Recall while events are written: exactness and latency, each answer checked.

    python -m loadtests.recall.recall_under_load
    python -m loadtests.recall.recall_under_load --rounds 1 --seconds 2 --check

Two workers of a production server with 20,000 memories each share a core with one client: one client recalls, the
other sends events in pipelines of sixteen. The two meet only in the block. Quiet and loaded phases alternate; in quiet
phases a bare loop keeps the writers' core busy, so that the rest of the machine disturbs both phases equally.

Every answer names a log position (`as_of`), every decision its position and memory id, and there is one writer on one
connection. So the live memories at `as_of` are known (the newest 20,000 accepted ones), and brute force in float64
gives the right answer.

Exit status: 1 for an inexact answer, or with --check when a loaded p50 or p99 is more than twice the quiet one; 2
nothing was measured.
"""

import argparse
import multiprocessing
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from core.reference.vector import cosine
from loadtests.bench import report
from loadtests.bench.processor import Cores, cores
from loadtests.bench.servers import TOKEN, Product
from loadtests.bench.traffic import RAW, TOP_K, request
from loadtests.bench.vectors import DIMENSION, MEMORIES, QUERIES, Floats
from loadtests.bench.wrk import MeasurementError
from loadtests.curves.native_store import clustered
from testing.eventually import eventually

ROUNDS: Final = 5
SECONDS: Final = 2.0
RATIO_MAX: Final = 2.0
VECTORS: Final = 30_000  # more than the capacity, so that no two live memories are equal
PIPELINE: Final = 16  # the requests that the worker reads ahead of its answers
NEAR: Final = 1e-9  # of a cosine: far above the rounding of float64 sums in any order
_DECIDED: Final = re.compile(rb'"position":(\d+),[^}]*"memory_id":(\d+)')
_KEY: Final = {"Authorization": f"Bearer {TOKEN}", **RAW}
_TRIES: Final = 64
_FORK: Final = multiprocessing.get_context("fork")  # a child starts at once, with the connection

Positions = NDArray[np.int64]


class TimedRecall(NamedTuple):
    """One recall: which query, the body of its answer, and how long it took."""

    query: int
    body: bytes
    latency_us: float


class Match(msgspec.Struct):
    """The used members of a match."""

    memory_id: int
    score: float


class RecallAnswer(msgspec.Struct):
    """The used members of an answer."""

    matches: list[Match]
    as_of: int


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.recall.recall_under_load", description="Recall under writes."
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"rounds of a quiet and a loaded phase (default {ROUNDS})"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"seconds per phase (default {SECONDS:g})")
    parser.add_argument("--check", action="store_true", help="fail when recall is more than twice as slow")
    args = parser.parse_args(arguments)
    memories, queries = clustered(VECTORS, DIMENSION, QUERIES)
    with tempfile.TemporaryDirectory(prefix="mlsdm-recall-") as name:
        server = Product(Path(name), {"WORKERS": "2"}, memories[:MEMORIES])
        try:
            server.start(os.sched_getaffinity(0))
            return measure(server, memories, queries, args)
        except MeasurementError as error:
            print(f"recall_under_load: {error}", file=sys.stderr)
            return 2
        finally:
            server.stop()


def measure(server: Product, memories: Floats, queries: Floats, args: argparse.Namespace) -> int:
    """Run the phases, prove the answers, print the table; returns the exit status."""
    place = cores()
    reading, writing = server.live.workers(server.live.block())
    for pid, core in ((reading, place.server), (writing, place.client)):
        psutil.Process(pid).cpu_affinity([core])
    reader, writer = (_connection_to(server.port, pid) for pid in (reading, writing))
    os.sched_setaffinity(0, {place.server})
    questions = [request("POST", f"/recall?top_k={TOP_K}", _KEY, query.tobytes()) for query in queries]
    print(f"{report.machine()}\n\n| phase | recalls | p50 µs | p99 µs | events/s |\n|---|---:|---:|---:|---:|")
    tails: dict[str, list[tuple[float, float]]] = {"quiet": [], "loaded": []}
    positions, answers = [np.zeros(0, np.int64)], list[TimedRecall]()
    try:
        for _ in range(args.rounds):
            for phase, found in tails.items():
                first = MEMORIES + sum(map(len, positions))
                with (
                    writer_running(writer, memories, first, place)
                    if phase == "loaded"
                    else idle_loop_running(place) as decided
                ):
                    got = send_recalls(reader, questions, args.seconds, len(answers))
                positions += decided
                answers += got
                p50, p99 = np.percentile([one.latency_us for one in got], (50, 99))
                found.append((float(p50), float(p99)))
                rate = sum(map(len, decided)) / args.seconds
                print(f"| {phase} | {len(got):,} | {p50:,.0f} | {p99:,.0f} | {rate:,.0f} |", flush=True)
    finally:
        os.sched_setaffinity(0, place.everywhere)
        reader.close()
        writer.close()
    wrong = inexact(answers, np.concatenate(positions), memories, queries)
    slow = False
    for number, name in enumerate(("p50", "p99")):
        quiet, loaded = (statistics.median(tail[number] for tail in tails[phase]) for phase in ("quiet", "loaded"))
        slow |= loaded > RATIO_MAX * quiet
        print(f"{name} loaded ÷ {name} quiet: {loaded / quiet:.2f} (at most {RATIO_MAX:g} is promised)")
    print(f"{len(answers) - len(wrong):,} of {len(answers):,} answers are exact at their position")
    for sentence in wrong[:10]:
        print(sentence)
    return 1 if wrong or (args.check and slow) else 0


def send_recalls(reader: socket.socket, questions: list[bytes], seconds: float, first: int) -> list[TimedRecall]:
    """Send recalls one after the other for `seconds`, from query number `first` on. Raises MeasurementError."""
    got: list[TimedRecall] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        number = (first + len(got)) % len(questions)
        reader.sendall(questions[number])
        body = _body(reader)
        got.append(TimedRecall(number, body, 1e6 * (time.perf_counter() - began)))
    return got


def _body(reader: socket.socket) -> bytes:
    """Return the body of one answer. Raises MeasurementError when it is not a 200."""
    octets = b""
    while True:
        head, end, body = octets.partition(b"\r\n\r\n")
        if end and not head.startswith(b"HTTP/1.1 200 "):
            raise MeasurementError(f"a recall was answered {octets[:300].decode(errors='replace')}")
        if end and len(body) == int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return body
        octets += _receive(reader)


def _receive(connection: socket.socket) -> bytes:
    try:
        piece = connection.recv(65_536)
    except OSError as error:
        raise MeasurementError(f"the server stopped answering: {error}") from None
    if not piece:
        raise MeasurementError("the server ended a connection")
    return piece


def _connection_to(port: int, pid: int) -> socket.socket:
    """Return a connection that a certain worker has accepted. Raises MeasurementError."""
    for _ in range(_TRIES):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours = connection.getsockname()[1]
        connection.sendall(request("GET", "/livez", _KEY))  # once it is answered, the connection was accepted
        _body(connection)
        if any(one.raddr and one.raddr.port == ours for one in psutil.Process(pid).net_connections("tcp4")):
            return connection
        connection.close()
    raise MeasurementError(f"none of {_TRIES} connections was accepted by worker {pid}")


@contextmanager
def idle_loop_running(place: Cores) -> Iterator[list[Positions]]:
    """Keep the writers' core busy with nothing inside; yields an empty list."""
    spinning = _FORK.Process(target=_spin, args=(place.client,), daemon=True)
    spinning.start()
    try:
        yield []
    finally:
        spinning.kill()
        spinning.join()


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextmanager
def writer_running(writer: socket.socket, memories: Floats, first: int, place: Cores) -> Iterator[list[Positions]]:
    """Send events inside, as fast as they are decided, from a process of its own; `first` came before.

    Yields a list that holds, afterwards, the log position of each of them, in order. Raises MeasurementError.
    """
    ours, theirs = multiprocessing.Pipe()
    writing = _FORK.Process(target=_write, args=(writer, memories, first, place.client, theirs), daemon=True)
    writing.start()
    decided: list[Positions] = []
    try:
        eventually(ours.poll)  # it has begun
        ours.recv()
        yield decided
        ours.send(None)
        eventually(ours.poll)
        positions = ours.recv()
    finally:
        writing.kill()
        writing.join()
    if isinstance(positions, str):
        raise MeasurementError(positions)
    decided.append(positions)


def _write(writer: socket.socket, memories: Floats, first: int, core: int, control: Connection) -> None:
    """Send events in pipelines until `control` receives a message; then send all their positions."""
    os.sched_setaffinity(0, {core})
    headers = {**_KEY, "Moral-Value": "1.0"}
    events = [request("POST", "/event", headers, vector.tobytes()) for vector in memories]
    positions: list[int] = []
    control.send(None)
    try:
        while not control.poll():
            number = first + len(positions)
            writer.sendall(b"".join(events[(number + i) % VECTORS] for i in range(PIPELINE)))
            octets, found = b"", list[Any]()
            while len(found) < PIPELINE:
                octets += _receive(writer)
                found = _DECIDED.findall(octets)
            if [int(memory_id) for _, memory_id in found] != list(range(number + 1, number + PIPELINE + 1)):
                raise MeasurementError(
                    f"the memories after {number} are {found}: another client writes, or an event was lost"
                )
            positions += [int(position) for position, _ in found]
    except (MeasurementError, OSError) as error:
        control.send(str(error))
    else:
        control.send(np.array(positions, np.int64))


def inexact(answers: list[TimedRecall], positions: Positions, memories: Floats, queries: Floats) -> list[str]:
    """Return a sentence for each answer that differs from brute force at its position.

    `positions` are those of the events after the first MEMORIES, in order; memory n has vector n − 1, modulo VECTORS.
    """
    exact = memories.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    by_query = defaultdict[int, list[RecallAnswer]](list)
    for one in answers:
        by_query[one.query].append(msgspec.json.decode(one.body, type=RecallAnswer))
    wrong = []
    for number, found in by_query.items():
        query = queries[number].astype(np.float64)
        scores = exact @ query / (lengths * np.linalg.norm(query))
        defined = cache(lambda row, query=queries[number]: cosine(query, memories[row]))  # most recur
        for answer in found:
            newest = MEMORIES + int(np.searchsorted(positions, answer.as_of, side="right"))
            ids = np.arange(newest - MEMORIES + 1, newest + 1)
            lived = scores[(ids - 1) % VECTORS]
            tenth = np.partition(lived, -TOP_K)[-TOP_K]
            near = ids[lived >= tenth - NEAR]  # contains the right ones for any order of sums
            ranked = sorted((-defined((i - 1) % VECTORS), -i) for i in near.tolist())[:TOP_K]
            if [(-match.score, -match.memory_id) for match in answer.matches] != ranked:
                ours = [match.memory_id for match in answer.matches]
                wrong.append(f"query {number} at {answer.as_of}: {ours}; expected {[-i for _, i in ranked]}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
