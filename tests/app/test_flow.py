"""What clients send ahead, leave unread or make large: turns, pieces, backlogs and budgets, over real sockets."""

import contextlib
import socket
import threading
import time
from collections import Counter

import pytest

from app.framing import Refusal
from app.turns import TURN_COUNT
from core.limits import (
    BODIES_SIZE,
    PIPELINE_DEPTH,
    PIPELINES_SIZE,
    WRITE_BUFFER_SIZE,
)
from tests.app.serving import (
    CHUNKED,
    GOOD,
    HOST,
    PATIENCE,
    Choosy,
    Reader,
    ask,
    connections,
    dial,
    get,
    post,
    serving,
    until,
)


def test_pipeline_behind_a_blocking_route_is_bounded() -> None:
    """Reading pauses while the queue is full, so that what one connection can queue does not grow; nothing is lost."""
    count = 20_000
    with serving() as server, dial(server) as client:
        sender = threading.Thread(target=lambda: client.sendall(get(b"/slow") + GOOD * count))
        sender.start()
        until(lambda: "/slow" in server.app.calls)
        time.sleep(0.2)
        (connection,) = server.service.connections
        waiting = server.call(lambda: len(connection._backlog))
        assert PIPELINE_DEPTH.value <= waiting <= PIPELINE_DEPTH.value + 2_048 // len(GOOD) + 1
        server.app.gate.set()
        reader = Reader(client)

        assert "/slow" == reader.answer().environ["PATH_INFO"]
        assert {"/good"} == {reader.answer().environ["PATH_INFO"] for _ in range(count)}
        sender.join(PATIENCE)


def test_a_pipeline_holds_nobody_up() -> None:
    """However much one connection sends ahead, a request of another that comes in the same turn of the loop is answered
    after the first of it, and one that comes in the next turn after a turn's worth; nothing of the pipeline is lost.
    """
    count = 2_000
    before: list[list[str]] = []
    with serving() as server, dial(server) as greedy, dial(server) as honest:
        first, second = connections(server, greedy, honest)

        def read() -> None:
            first.data_received(GOOD * count)
            second.data_received(get(b"/honest/1"))
            before.append(server.app.calls.copy())
            server.loop.call_soon(read_next)

        def read_next() -> None:
            second.data_received(get(b"/honest/2"))
            before.append(server.app.calls.copy())

        server.call(read)
        until(lambda: len(before) == 2)
        reader, honest_reader = Reader(greedy), Reader(honest)

        assert ["/good", "/honest/1"] == before[0]
        assert len(before[1]) <= 2 + TURN_COUNT + 1
        assert ["/honest/1", "/honest/2"] == [honest_reader.answer().environ["PATH_INFO"] for _ in range(2)]
        assert {"/good"} == {reader.answer().environ["PATH_INFO"] for _ in range(count)}
        assert 0 == server.call(lambda: server.service.pipelines.size)


def test_pipelines_take_turns() -> None:
    """Of two connections that both send ahead, each gets one answer after the other."""
    count = 40
    with serving() as server, dial(server) as one, dial(server) as two:
        first, second = connections(server, one, two)

        def read() -> None:
            first.data_received(get(b"/1") * count)
            second.data_received(get(b"/2") * count)

        server.call(read)
        readers = Reader(one), Reader(two)
        for reader in readers:
            assert {200} == {reader.answer().status for _ in range(count)}

        leads = [Counter(server.app.calls[:done]) for done in range(2 * count)]
        assert 2 >= max(abs(lead["/1"] - lead["/2"]) for lead in leads)


def test_many_pipelines_hold_nobody_up() -> None:
    """Of many connections that send ahead in one turn of the loop, one gets an answer in it; a request that comes alone
    passes them all, and then they have theirs.
    """
    count = 30
    with serving() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(server)) for _ in range(count + 1)]
        *greedy, honest = connections(server, *clients)

        def read() -> list[str]:
            for connection in greedy:
                connection.data_received(GOOD * count)
            honest.data_received(get(b"/honest"))
            return list(server.app.calls)

        assert ["/good", "/honest"] == server.call(read)
        assert "/honest" == Reader(clients[-1]).answer().environ["PATH_INFO"]
        for client in clients[:-1]:
            reader = Reader(client)
            assert {200} == {reader.answer().status for _ in range(count)}


def test_a_body_does_not_hide_a_pipeline() -> None:
    """Requests that come in one read with the end of a body take their turns too."""
    with serving() as server, dial(server) as client:
        (connection,) = connections(server, client)
        calls: list[str] = []

        def read() -> None:
            connection.data_received(post(b"Content-Length: 40000\r\n", b"x" * 10_000))
            connection.data_received(b"x" * 30_000 + GOOD * 300)
            calls.extend(server.app.calls)

        server.call(read)
        reader = Reader(client)

        assert {200} == {reader.answer().status for _ in range(301)}
        assert ["/"] == calls


@pytest.mark.parametrize("busy", [False, True])
def test_pipelines_share_a_budget(busy: bool) -> None:
    """What is sent ahead beyond what the worker may hold is refused with 503 in its turn; single requests are
    answered, and what was held is given back.
    """
    with serving() as server, dial(server) as client, dial(server) as honest:
        connections(server, client, honest)
        server.call(lambda: server.service.pipelines.take(PIPELINES_SIZE.value - 5_000))
        client.sendall((get(b"/slow") if busy else b"") + GOOD * 50)
        if busy:
            until(lambda: server.call(lambda: server.app.refusals["pipelines_full"]) == 1)
        honest.sendall(GOOD)
        assert 200 == Reader(honest).answer().status
        server.app.gate.set()
        reader = Reader(client)
        answers = [reader.answer()]
        while answers[-1].status == 200:
            answers.append(reader.answer())
        reader.end()

        assert (503, "pipelines_full", "1") == (
            answers[-1].status, answers[-1].json["code"], answers[-1].headers["retry-after"],
        )  # fmt: skip
        assert 4 == len(answers)
        assert PIPELINES_SIZE.value - 5_000 == server.call(lambda: server.service.pipelines.size)


def test_what_is_not_parsed_is_in_the_budget() -> None:
    """So are bytes that wait to be parsed, until they are, or their connection ends."""
    with serving() as server, dial(server) as client:
        (connection,) = connections(server, client)
        data = get(b"/slow") + GOOD * 20_000  # what is parsed of it is less, whatever a request is counted for
        server.call(lambda: connection.data_received(data))
        kept = server.call(lambda: server.service.pipelines.size)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.app.gate.set()
        until(lambda: bool(server.lost))

        assert len(data) - 4_096 <= kept
        assert 0 == server.call(lambda: server.service.pipelines.size)


def test_reader_too_slow_is_not_buffered_for() -> None:
    """While a peer does not take its answers the application is called no more; when it reads, all of them come."""
    count = 200
    with serving(sndbuf=8_192) as server, dial(server, rcvbuf=8_192) as client:
        client.sendall(get(b"/big") * count)
        until(lambda: server.call(lambda: len(server.app.calls)) > 0)
        time.sleep(0.2)
        assert len(server.app.calls) <= WRITE_BUFFER_SIZE.value // 262_144 + 2
        reader = Reader(client)

        assert {262_144} == {len(reader.answer().body) for _ in range(count)}


def test_large_bodies_share_a_budget() -> None:
    """A large body beyond what the worker may hold is refused with 503 and Retry-After; others' bodies are unharmed."""
    size = BODIES_SIZE.value // 2
    with serving() as server, dial(server) as first, dial(server) as second:
        for client in (first, second):
            client.sendall(post(b"Content-Length: %d\r\n" % size, b"x"))
        until(lambda: server.call(lambda: server.service.bodies.size) == 2 * size)
        (refused,) = ask(server, post(b"Content-Length: 65537\r\n"))
        (small,) = ask(server, post(b"Content-Length: 1\r\n", b"x"))

        assert (503, "bodies_full", "1") == (refused.status, refused.json["code"], refused.headers["retry-after"])
        assert 200 == small.status
        first.close()
        until(lambda: server.call(lambda: server.service.bodies.size) == size)


@pytest.mark.parametrize("before", [b"", get(b"/slow")], ids=["first", "behind"])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"Content-Length: 16000000\r\n", b"x"),
        (CHUNKED, b"10001\r\n" + b"x" * 65_537),
    ],
    ids=["announced", "chunked"],
)
def test_unwanted_large_body_takes_no_memory(before: bytes, framing: bytes, sent: bytes) -> None:
    """A stranger who announces megabytes is answered at once and has reserved nothing of what others need."""
    with serving(Choosy()) as server, dial(server) as client:
        server.app.gate.set()
        client.sendall(before + b"POST /no HTTP/1.1\r\n" + HOST + framing + b"\r\n" + sent)
        reader = Reader(client)
        if before:
            assert "/slow" == reader.answer().environ["PATH_INFO"]
        answer = reader.answer()

        assert ("close", "0") == (answer.headers["connection"], answer.environ["CONTENT_LENGTH"])
        assert 0 == server.call(lambda: server.service.bodies.size)
        client.sendall(GOOD)
        reader.end()
        assert "/good" not in server.app.calls


def test_turned_away() -> None:
    """A connection that was made to be refused says so at once and closes."""
    with (
        serving(refusal=Refusal(503, "too_many_connections", "Full.", retry_after=1)) as server,
        dial(server) as client,
    ):
        reader = Reader(client)
        answer = reader.answer()

        assert (503, "1", "close") == (answer.status, answer.headers["retry-after"], answer.headers["connection"])
        reader.end()
