"""Flow control over real sockets: pipelines, the fair queue, byte budgets and slow readers."""

import contextlib
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from app.httpd.application import IN_TURN
from app.httpd.fair_queue import TURN_COUNT, TURN_SECONDS
from app.httpd.request_parser import LARGE_BODY_SIZE
from core.limits import (
    ANSWERS_SIZE,
    BODIES_SIZE,
    BODY_SIZE,
    PIPELINE_DEPTH,
    PIPELINES_SIZE,
    WRITE_BUFFER_SIZE,
)
from testing.eventually import HANG_SECONDS, eventually
from tests.app.httpd.serving import (
    CHUNKED,
    GOOD,
    HOST,
    AnswerReader,
    EchoApplication,
    RunningServer,
    SelectiveApplication,
    connect,
    fetch,
    get,
    post,
    reset,
    server_sides,
    serving,
)


def test_pipeline_behind_a_blocking_route_is_bounded() -> None:
    """Reading pauses while PIPELINE_DEPTH requests wait, so a pipeline does not grow; no request is lost."""
    count = 20_000
    with serving() as server, connect(server) as client:
        sender = threading.Thread(target=lambda: client.sendall(get(b"/slow") + GOOD * count))
        sender.start()
        eventually(lambda: "/slow" in server.app.calls)
        (connection,) = server_sides(server, client)
        eventually(lambda: server.run_on_loop(lambda: connection.snapshot().waiting_count) >= PIPELINE_DEPTH.value)
        server.run_on_loop(lambda: None)  # the loop has gone round: what would still be read has been
        waiting = server.run_on_loop(lambda: connection.snapshot().waiting_count)
        assert PIPELINE_DEPTH.value <= waiting <= PIPELINE_DEPTH.value + 2_048 // len(GOOD) + 1
        server.app.gate.set()
        reader = AnswerReader(client)

        assert reader.read_answer().environ["PATH_INFO"] == "/slow"
        assert {reader.read_answer().environ["PATH_INFO"] for _ in range(count)} == {"/good"}
        sender.join(HANG_SECONDS)


def test_pipeline_does_not_delay_others() -> None:
    """However long a pipeline is, another connection's request of the same turn is answered after the pipeline's first
    one, and a request of the next turn after TURN_COUNT of them; no request of the pipeline is lost.
    """
    count = 2_000
    before: list[list[str]] = []
    with serving() as server, connect(server) as greedy, connect(server) as honest:
        first, second = server_sides(server, greedy, honest)

        def read() -> None:
            first.data_received(GOOD * count)
            second.data_received(get(b"/honest/1"))
            before.append(server.app.calls.copy())
            server.loop.call_soon(read_next)

        def read_next() -> None:
            second.data_received(get(b"/honest/2"))
            before.append(server.app.calls.copy())

        server.run_on_loop(read)
        eventually(lambda: len(before) == 2)
        reader, honest_reader = AnswerReader(greedy), AnswerReader(honest)

        assert before[0] == ["/good", "/honest/1"]
        assert len(before[1]) <= 2 + TURN_COUNT + 1
        assert [honest_reader.read_answer().environ["PATH_INFO"] for _ in range(2)] == ["/honest/1", "/honest/2"]
        assert {reader.read_answer().environ["PATH_INFO"] for _ in range(count)} == {"/good"}
        assert server.run_on_loop(lambda: server.worker_state.pipelines.size) == 0


def test_pipelines_take_turns() -> None:
    """Two connections that pipeline get their answers alternately."""
    count = 40
    with serving() as server, connect(server) as one, connect(server) as two:
        first, second = server_sides(server, one, two)

        def read() -> None:
            first.data_received(get(b"/1") * count)
            second.data_received(get(b"/2") * count)

        server.run_on_loop(read)
        readers = AnswerReader(one), AnswerReader(two)
        for reader in readers:
            assert {reader.read_answer().status for _ in range(count)} == {200}

        leads = [Counter(server.app.calls[:done]) for done in range(2 * count)]
        assert 2 >= max(abs(lead["/1"] - lead["/2"]) for lead in leads)


def test_many_pipelines_do_not_delay_others() -> None:
    """Of many pipelines that arrive in one turn of the loop, one gets an answer in it; a single request of another
    connection overtakes the rest; then all pipelines are answered.
    """
    count = 30
    with serving() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(count + 1)]
        *greedy, honest = server_sides(server, *clients)

        def read() -> list[str]:
            for connection in greedy:
                connection.data_received(GOOD * count)
            honest.data_received(get(b"/honest"))
            return list(server.app.calls)

        assert server.run_on_loop(read) == ["/good", "/honest"]
        assert AnswerReader(clients[-1]).read_answer().environ["PATH_INFO"] == "/honest"
        for client in clients[:-1]:
            reader = AnswerReader(client)
            assert {reader.read_answer().status for _ in range(count)} == {200}


def test_pipeline_behind_a_body_takes_turns() -> None:
    """Requests that arrive in one read with the end of a body wait in the fair queue too."""
    with serving() as server, connect(server) as client:
        (connection,) = server_sides(server, client)
        calls: list[str] = []

        def read() -> None:
            connection.data_received(post(b"Content-Length: 40000\r\n", b"x" * 10_000))
            connection.data_received(b"x" * 30_000 + GOOD * 300)
            calls.extend(server.app.calls)

        server.run_on_loop(read)
        reader = AnswerReader(client)

        assert {reader.read_answer().status for _ in range(301)} == {200}
        assert calls == ["/"]


@pytest.mark.parametrize("busy", [False, True])
def test_pipelines_share_a_budget(busy: bool) -> None:
    """Pipelined requests beyond the worker's budget get 503 in their turn; single requests are answered, and the budget
    is released.
    """
    with serving() as server, connect(server) as client, connect(server) as honest:
        server_sides(server, client, honest)
        server.run_on_loop(lambda: server.worker_state.pipelines.reserve(PIPELINES_SIZE.value - 5_000))
        client.sendall((get(b"/slow") if busy else b"") + GOOD * 50)
        if busy:
            eventually(lambda: server.run_on_loop(lambda: server.app.refusals["pipelines_full"]) == 1)
        honest.sendall(GOOD)
        assert AnswerReader(honest).read_answer().status == 200
        server.app.gate.set()
        reader = AnswerReader(client)
        answers = [reader.read_answer()]
        while answers[-1].status == 200:
            answers.append(reader.read_answer())
        reader.expect_end()

        assert (
            answers[-1].status, answers[-1].json["code"], answers[-1].headers["retry-after"],
        ) == (503, "pipelines_full", "1")  # fmt: skip
        assert len(answers) == 4
        assert server.run_on_loop(lambda: server.worker_state.pipelines.size) == PIPELINES_SIZE.value - 5_000


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_pipelines_full_carries_the_names_of_its_request(method: bytes) -> None:
    """A request refused with `pipelines_full` is answered under its own id, and without content if it is a HEAD."""
    with serving() as server, connect(server) as client:
        server_sides(server, client)
        server.run_on_loop(lambda: server.worker_state.pipelines.reserve(PIPELINES_SIZE.value - 100))
        client.sendall(get(b"/slow"))
        eventually(lambda: "/slow" in server.app.calls)
        client.sendall(method + b" /ahead HTTP/1.1\r\nX-Request-ID: r-2\r\n" + HOST + b"\r\n")
        eventually(lambda: server.run_on_loop(lambda: server.app.refusals["pipelines_full"]) == 1)
        server.app.gate.set()
        reader = AnswerReader(client)
        assert reader.read_answer().environ["PATH_INFO"] == "/slow"
        answer = reader.read_answer(head=method == b"HEAD")

        assert (
            answer.status, answer.headers["x-request-id"], answer.headers["connection"],
        ) == (503, "r-2", "close")  # fmt: skip
        reader.expect_end()


def test_unparsed_bytes_count_in_the_budget() -> None:
    """Unparsed bytes count in the budget until they are parsed or their connection ends."""
    with serving() as server, connect(server) as client:
        (connection,) = server_sides(server, client)
        data = get(b"/slow") + GOOD * 20_000  # its parsed part counts for less
        server.run_on_loop(lambda: connection.data_received(data))
        kept = server.run_on_loop(lambda: server.worker_state.pipelines.size)
        reset(client)
        server.app.gate.set()
        eventually(lambda: bool(server.lost))

        assert len(data) - 4_096 <= kept
        assert server.run_on_loop(lambda: server.worker_state.pipelines.size) == 0


def test_no_request_is_answered_while_the_peer_does_not_read() -> None:
    """The application is not called while the peer does not read; when it reads, it gets every answer."""
    count = 200
    with serving(sndbuf=8_192) as server, connect(server, rcvbuf=8_192) as client:
        client.sendall(get(b"/big") * count)
        eventually(lambda: server.run_on_loop(lambda: server.worker_state.slow_readers.size) > WRITE_BUFFER_SIZE.value)
        server.run_on_loop(lambda: None)  # the loop has gone round: who would be called has been
        assert len(server.app.calls) <= WRITE_BUFFER_SIZE.value // 262_144 + 2
        reader = AnswerReader(client)

        assert {len(reader.read_answer().body) for _ in range(count)} == {262_144}


def held(server: RunningServer) -> int:
    """Return the bytes of large bodies that the server counts."""
    size = server.run_on_loop(lambda: server.worker_state.bodies.size)
    assert isinstance(size, int)
    return size


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_large_bodies_share_a_budget(chunked: bool) -> None:
    """A large body beyond the worker's budget gets 503 with Retry-After; other bodies arrive. The bytes of a body are
    released when it is refused or its client disconnects.
    """
    size = BODIES_SIZE.value // 2
    least = size - 2 * LARGE_BODY_SIZE
    framing, frame = (CHUNKED, b"%x\r\n" % size) if chunked else (b"Content-Length: %d\r\n" % size, b"")
    begun = post(framing, frame + b"x" * (size - 1))
    with serving() as server, connect(server) as first, connect(server) as second, connect(server) as third:
        for client in (first, second):
            client.sendall(begun)
        eventually(lambda: held(server) >= 2 * least)
        third.sendall(post(b"Content-Length: 500000\r\n", b"x" * 400_000))
        refused = AnswerReader(third).read_answer()
        (small,) = fetch(server, post(b"Content-Length: 1\r\n", b"x"))

        assert (refused.status, refused.json["code"], refused.headers["retry-after"]) == (503, "bodies_full", "1")
        assert small.status == 200
        assert held(server) <= 2 * size
        first.close()
        eventually(lambda: least <= held(server) <= size)
        second.sendall(b"\0\0\0" if chunked else b"x")  # not the end of a chunk
        assert (400 if chunked else 200) == AnswerReader(second).read_answer().status
        eventually(lambda: held(server) == 0)


def test_announced_bodies_take_no_memory() -> None:
    """A body that was announced and is not sent takes nothing from the budget."""
    with serving() as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(3)]
        for client in silent:
            client.sendall(post(b"Content-Length: %d\r\n" % BODY_SIZE.value, b"x"))
        announced = server_sides(server, *silent)
        eventually(
            lambda: (
                server.run_on_loop(lambda: {c.snapshot().body_size_left for c in announced}) == {BODY_SIZE.value - 1}
            )
        )
        (answer,) = fetch(server, post(b"Content-Length: %d\r\n" % BODY_SIZE.value, b"x" * BODY_SIZE.value))

        assert answer.status == 200
        assert held(server) == 0


def test_bodies_are_released_with_their_answers() -> None:
    """A client that starts its next request before it reads the last answer never holds more than one body."""
    size = 200_000
    head, body = post(b"Content-Length: %d\r\n" % size), b"x" * size
    with serving() as server, connect(server) as client:
        reader = AnswerReader(client)
        client.sendall(head + body[:150_000])
        for _ in range(5):
            eventually(lambda: held(server) > 0)
            client.sendall(body[150_000:] + head + body[:150_000])

            assert size == len(reader.read_answer().json["body"])
            assert held(server) <= size


@pytest.mark.parametrize("path", [b"/slow", b"/"], ids=["pool", "inline"])
def test_bodies_are_released_when_the_client_disconnects(path: bytes) -> None:
    """When the client disconnects, waiting bodies are released at once, and one on the pool when its request ends."""
    request = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000
    with serving() as server:
        with connect(server) as client:
            client.sendall(get(b"/slow"))
            eventually(lambda: "/slow" in server.app.calls)
            client.sendall(request * 2)
            eventually(lambda: held(server) >= 2 * (200_000 - LARGE_BODY_SIZE))
            reset(client)
        eventually(lambda: bool(server.lost))

        assert held(server) == 0
        with connect(server) as client:
            client.sendall(b"POST /slow HTTP/1.1\r\n" + HOST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000)
            eventually(lambda: len(server.app.calls) == 2)
            reset(client)
        eventually(lambda: len(server.lost) == 2)
        assert held(server) > 0
        server.app.gate.set()
        eventually(lambda: held(server) == 0)


def test_body_in_tiny_chunks_takes_no_more_memory() -> None:
    """A body in chunks of two bytes is kept in few objects, and arrives whole."""
    pieces = b"".join(b"2\r\n%02d\r\n" % (number % 100) for number in range(20_000))
    with serving() as server, connect(server) as client:
        (connection,) = server_sides(server, client)
        client.sendall(post(CHUNKED, pieces))
        eventually(lambda: server.run_on_loop(lambda: connection.snapshot().body_size) == 40_000)
        kept = server.run_on_loop(lambda: connection.snapshot().body_pieces_count)
        client.sendall(b"0\r\n\r\n")

        assert kept < 1_100
        assert (
            "".join(f"{number % 100:02d}" for number in range(20_000))
            == AnswerReader(client).read_answer().json["body"]
        )


# -- slow readers ---------------------------------------------------------------------------------------------------


def test_answers_generated_in_one_turn_are_bounded() -> None:
    """However many large answers are requested at once, at most twice ANSWERS_SIZE is generated in one turn. Peers that
    read nothing are disconnected; one that reads gets its whole answer.
    """
    count = 40
    with serving(sndbuf=8_192) as server, contextlib.ExitStack() as stack:
        server.app.size = 4_000_000
        clients = [stack.enter_context(connect(server, rcvbuf=8_192)) for _ in range(count)]
        made = server_sides(server, *clients)

        def read() -> int:
            for connection in made:
                connection.data_received(get(b"/big"))
            return len(server.app.calls)

        assert server.run_on_loop(read) <= 2 * ANSWERS_SIZE.value // server.app.size + 1
        eventually(lambda: len(server.app.calls) == count)
        eventually(lambda: 0 < server.run_on_loop(lambda: server.worker_state.slow_readers.size) <= ANSWERS_SIZE.value)
        assert fetch(server, GOOD)[0].status == 200
        server.advance(1.0)
        honest = stack.enter_context(connect(server))
        honest.sendall(get(b"/big"))

        assert len(AnswerReader(honest).read_answer().body) == 4_000_000
        assert server.app.refusals["answers_full"] >= count - ANSWERS_SIZE.value // server.app.size


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_slowest_reader_is_disconnected(tls: bool) -> None:
    """When slow readers have too much left, one that reads nothing is disconnected: neither the peers that have just
    asked, nor the one that reads slowly.
    """
    with serving(sndbuf=8_192, tls=tls) as server, contextlib.ExitStack() as stack:
        server.app.size = 4_000_000
        count = ANSWERS_SIZE.value // server.app.size
        idle = [stack.enter_context(connect(server, rcvbuf=8_192)) for _ in range(count)]
        for client in idle:
            client.sendall(get(b"/big"))
        eventually(
            lambda: server.run_on_loop(lambda: server.worker_state.slow_readers.size) > 0.9 * count * server.app.size
        )
        readers = [AnswerReader(client) for client in idle]
        slow = readers[0]
        for reader in readers:
            while len(reader.buffer) < (2_000_000 if reader is slow else 100_000):
                reader.buffer += reader.client.recv(65_536)
        server.advance(1.0)
        honest = [stack.enter_context(connect(server, rcvbuf=8_192)) for _ in range(2)]
        for client in honest:
            client.sendall(get(b"/big"))
        eventually(lambda: bool(server.lost))
        eventually(lambda: server.run_on_loop(lambda: server.worker_state.slow_readers.size) <= ANSWERS_SIZE.value)

        assert [len(AnswerReader(client).read_answer().body) for client in honest] == [4_000_000] * 2
        assert len(slow.read_answer().body) == 4_000_000
        assert 1 <= server.app.refusals["answers_full"] <= 2
        assert server.run_on_loop(lambda: server.worker_state.slow_readers.size) <= ANSWERS_SIZE.value
        stack.close()
        eventually(lambda: server.run_on_loop(lambda: server.worker_state.slow_readers.size) == 0)


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
    """A large body that the application does not want is answered at once and reserves nothing."""
    with serving(SelectiveApplication()) as server, connect(server) as client:
        server.app.gate.set()
        client.sendall(before + b"POST /no HTTP/1.1\r\n" + HOST + framing + b"\r\n" + sent)
        reader = AnswerReader(client)
        if before:
            assert reader.read_answer().environ["PATH_INFO"] == "/slow"
        answer = reader.read_answer()

        assert (answer.headers["connection"], answer.environ["CONTENT_LENGTH"]) == ("close", "0")
        assert server.run_on_loop(lambda: server.worker_state.bodies.size) == 0
        client.sendall(GOOD)
        reader.expect_end()
        assert "/good" not in server.app.calls


class HeavyApplication(EchoApplication):
    """An echo whose /heavy… requests are answered IN_TURN. Each advances `clock` by `seconds`, which nothing else does,
    and calls `during` with its path.
    """

    seconds = 2 * TURN_SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.during: Callable[[str], object] = lambda _path: None

    def clock(self) -> float:
        return self.now

    def way_of(self, method: str, path: str) -> int:
        return IN_TURN if path.startswith("/heavy") else super().way_of(method, path)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/heavy"):
            self.now += self.seconds
            self.during(environ["PATH_INFO"])
        return super().__call__(environ, start_response)


@contextlib.contextmanager
def serving_heavy(count: int, *, tls: bool = False) -> Iterator[tuple[RunningServer, list[socket.socket]]]:
    """Serve a HeavyApplication with `count` clients that are connected."""
    app = HeavyApplication()
    with serving(app, clock=app.clock, tls=tls) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(count)]
        server_sides(server, *clients)
        yield server, clients


def receive_in_one_turn(server: RunningServer, requests: Iterable[tuple[socket.socket, bytes]]) -> None:
    """Have the server receive all `requests`, each from a client, in one turn of its loop."""
    received = [(side, request) for client, request in requests for side in server_sides(server, client)]

    def receive() -> None:
        for side, request in received:
            side.data_received(request)

    server.run_on_loop(receive)


def heavy(*numbers: int) -> list[str]:
    """Return the paths of heavy requests."""
    return [f"/heavy/{number}" for number in numbers]


def test_light_requests_do_not_wait_for_heavy_ones() -> None:
    """Of many heavy requests that arrive in one turn of the loop, the first is answered in it; a light request of the
    same turn, and one of the next turn, are answered before the others. Each counts as served once.
    """
    with serving_heavy(52) as (server, [*clients, probe, later]):
        (later_side,) = server_sides(server, later)

        def receive_later(path: str) -> None:
            if path == "/heavy/1":
                later_side.data_received(get(b"/later"))

        server.app.during = receive_later
        requests = [(client, get(b"/heavy/%d" % number)) for number, client in enumerate(clients)]
        receive_in_one_turn(server, [*requests, (probe, get(b"/probe"))])
        answers = [AnswerReader(client).read_answer() for client in (*clients, probe, later)]

        assert {answer.status for answer in answers} == {200}
        assert server.app.calls == [*heavy(0), "/probe", "/later", *heavy(*range(1, 50))]
        assert server.worker_state.served == 52


def test_heavy_requests_that_fit_into_a_turn_are_answered_at_once() -> None:
    """Heavy requests are answered in the turn in which they arrive until TURN_SECONDS have passed; so are those of the
    next turn, when none waits.
    """
    with serving_heavy(7) as (server, [*clients, probe]):
        server.app.seconds = TURN_SECONDS / 2
        first = [(client, get(b"/heavy/%d" % number)) for number, client in enumerate(clients[:4])]
        receive_in_one_turn(server, [*first, (probe, get(b"/probe"))])
        assert [AnswerReader(client).read_answer().status for client in clients[:4]] == [200] * 4
        second = [(client, get(b"/heavy/%d" % number)) for number, client in enumerate(clients[4:], 4)]
        receive_in_one_turn(server, [*second, (probe, get(b"/probe"))])
        assert [AnswerReader(client).read_answer().status for client in clients[4:]] == [200] * 2

        assert server.app.calls == [*heavy(0, 1), "/probe", *heavy(2, 3), *heavy(4, 5), "/probe"]


def test_heavy_requests_take_turns() -> None:
    """Heavy requests of two clients that pipeline are answered alternately, where parsing one that came in a later read
    is a step too; each client gets its answers in the order of its requests.
    """
    with serving_heavy(2) as (server, [one, two]):
        receive_in_one_turn(server, [
            (one, get(b"/heavy/1") + get(b"/heavy/2") + get(b"/heavy/3") + get(b"/light")),
            (two, get(b"/heavy/4")), (two, get(b"/heavy/5")),
        ])  # fmt: skip
        reader, other_reader = AnswerReader(one), AnswerReader(two)
        paths = [reader.read_answer().environ["PATH_INFO"] for _ in range(4)]
        other_paths = [other_reader.read_answer().environ["PATH_INFO"] for _ in range(2)]

        assert (paths, other_paths) == ([*heavy(1, 2, 3), "/light"], heavy(4, 5))
        assert server.app.calls == [*heavy(1, 2, 4, 3), "/light", *heavy(5)]


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_heavy_request_whose_client_has_left_is_not_served(tls: bool) -> None:
    """The server reads from a client whose request waits, so it learns that the client has left; on TLS, also that it
    has closed its side. The others are answered.
    """
    with serving_heavy(30, tls=tls) as (server, clients):
        sides = server_sides(server, *clients)

        def leave(path: str) -> None:
            if path == "/heavy/1":
                clients[29].close() if tls else reset(clients[29])
                descriptor = sides[29]._transport.get_extra_info("socket").fileno()
                eventually(lambda: select.select([descriptor], [], [], 0)[0])

        server.app.during = leave
        receive_in_one_turn(server, [(client, get(b"/heavy/%d" % number)) for number, client in enumerate(clients)])
        assert {AnswerReader(client).read_answer().status for client in clients[:29]} == {200}
        eventually(lambda: bool(server.lost))
        server.run_on_loop(lambda: None)

        assert server.app.calls == heavy(*range(29))
        assert server.run_on_loop(lambda: (server.worker_state.pipelines.size, server.worker_state.served)) == (0, 29)


def test_heavy_requests_that_wait_are_answered_as_others() -> None:
    """A request that says close is answered, and closes; so is one whose client has closed its side while the request
    waited, and one that waits when the worker begins to drain.
    """
    with serving_heavy(4) as (server, [first, closing, half_closed, drained]):
        (side,) = server_sides(server, half_closed)

        def during(path: str) -> None:
            if path == "/heavy/1":  # in a turn of the fair queue, so the end is read in its own turn
                half_closed.shutdown(socket.SHUT_WR)
                eventually(lambda: select.select([side._transport.get_extra_info("socket")], [], [], 0)[0])
            if path == "/heavy/2":
                server.worker_state.draining = True

        server.app.during = during
        receive_in_one_turn(server, [
            (first, get(b"/heavy/0")), (closing, get(b"/heavy/1", b"Connection: close\r\n")),
            (half_closed, get(b"/heavy/2")), (drained, get(b"/heavy/3")),
        ])  # fmt: skip
        readers = [AnswerReader(client) for client in (first, closing, half_closed, drained)]
        answers = [reader.read_answer() for reader in readers]
        for reader in readers[1:]:
            reader.expect_end()

        assert [answer.status for answer in answers] == [200] * 4
        assert [answer.headers.get("connection") for answer in answers] == [None, "close", "close", "close"]
        assert server.app.calls == heavy(0, 1, 2, 3)


def test_large_body_that_waits_counts_in_one_budget() -> None:
    """A heavy request with the largest body waits for its turn: its bytes count as those of a body, and only once."""
    size = BODY_SIZE.value
    request = b"POST /heavy/2 HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    with serving_heavy(2) as (server, [one, two]):
        receive_in_one_turn(server, [(one, get(b"/heavy/1")), (two, request)])

        assert AnswerReader(two).read_answer().status == 200
        assert (held(server), server.run_on_loop(lambda: server.worker_state.pipelines.size)) == (0, 0)
