"""How connections end: by deadlines, lingering and draining, over real sockets."""

import asyncio
import contextlib
import logging
import select
import ssl

import pytest

from app.httpd.worker_state import WorkerState
from core.limits import IDLE_SECONDS, KEEPALIVE_SECONDS, LINGER_SECONDS, READ_RATE, WRITE_SECONDS
from testing.eventually import HANG_SECONDS, eventually
from tests.app.httpd.serving import (
    GOOD,
    AnswerReader,
    EchoApplication,
    connect,
    get,
    post,
    server_sides,
    serving,
)


def test_head_deadline_is_absolute() -> None:
    """A head that arrives byte by byte gets no more time than one that stops."""
    with serving(clock_step=0.05) as server, connect(server) as client:
        for byte in get(b"/", b"X: " + b"a" * 8_000 + b"\r\n"):
            client.sendall(bytes([byte]))
            if select.select([client], [], [], 0.005)[0]:
                break
        answer = AnswerReader(client).read_answer()

        assert (answer.status, answer.json["code"]) == (408, "headers_timeout")


def test_first_byte_starts_the_head_deadline() -> None:
    """The deadline of a head starts with its first byte."""
    with serving(clock_step=0.2) as server, connect(server) as client:
        client.sendall(b"G")

        assert AnswerReader(client).read_answer().json["code"] == "headers_timeout"


def test_body_deadline_ends_with_408() -> None:
    """A body that does not arrive in time is answered 408."""
    with serving(clock_step=0.2) as server, connect(server) as client:
        client.sendall(post(b"Content-Length: 5\r\n", b"hel"))
        answer = AnswerReader(client).read_answer()

        assert (answer.status, answer.json["code"], answer.headers["connection"]) == (408, "body_timeout", "close")


def test_silence_ends_quietly() -> None:
    """A connection without requests is closed without an answer after KEEPALIVE_SECONDS."""
    with serving() as server, connect(server) as client:
        client.sendall(GOOD)
        reader = AnswerReader(client)
        assert reader.read_answer().status == 200
        server.advance(KEEPALIVE_SECONDS.value + 1)

        reader.expect_end()
        eventually(lambda: bool(server.lost))
        assert dict(server.app.refusals) == {"keepalive_timeout": 1}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_write_deadline_disconnects_the_peer(tls: bool) -> None:
    """A peer that does not read its answer is disconnected."""
    with serving(clock_step=0.5, sndbuf=8_192, tls=tls) as server, connect(server, rcvbuf=8_192) as client:
        client.sendall(get(b"/big"))
        eventually(lambda: bool(server.lost))

        assert dict(server.app.refusals) == {"reader_too_slow": 1, "write_timeout": 1}
        assert server.worker_state.slow_readers.size == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("last", [False, True], ids=["kept", "closed after it"])
def test_steady_reader_gets_its_answer_whole(last: bool, tls: bool) -> None:
    """A peer that reads 38 kB/s gets 2 MB: far longer than WRITE_SECONDS, whether or not it is the last answer."""
    with serving(sndbuf=8_192, tls=tls) as server, connect(server, rcvbuf=8_192) as client:
        server.app.size = 2_000_000
        client.sendall(get(b"/big", b"Connection: close\r\n" if last else b""))
        reader = AnswerReader(client)
        rounds = 0
        while b"\r\n\r\n" not in reader.buffer or len(reader.buffer) < server.app.size:
            size = len(reader.buffer) + 38_000
            while len(reader.buffer) < min(size, server.app.size):
                piece = client.recv(4_096)
                assert piece, "the connection was closed before its end"
                reader.buffer += piece
            server.advance(1)
            rounds += 1

        assert len(reader.read_answer().body) == server.app.size
        assert rounds > 4 * WRITE_SECONDS.value
        if last:
            reader.expect_end()
        assert dict(server.app.refusals) == {"reader_too_slow": 1}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_trickling_reader_is_disconnected_and_logged(tls: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A peer that makes progress, but less than READ_RATE, is disconnected; one line says how it was reading."""
    caplog.set_level(logging.INFO, "test")
    with serving(sndbuf=8_192, tls=tls) as server, connect(server, rcvbuf=8_192) as client:
        server.app.size = 2_000_000
        client.sendall(get(b"/big"))
        eventually(lambda: "/big" in server.app.calls)
        received, rounds = 0, 0
        while not server.lost and rounds < 100:
            received += len(client.recv(READ_RATE.value // 4))
            server.advance(1)
            rounds += 1
        eventually(lambda: bool(server.lost))

    (line,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert (line.code, line.address) == ("write_timeout", "127.0.0.1")  # type: ignore[attr-defined]  # from `extra`
    bytes_read, bytes_left, rate, seconds = line.args[:4]  # type: ignore[index,misc]  # four numbers
    assert 0 < bytes_read + bytes_left <= server.app.size + 300_000  # on TLS, the framing is counted, too
    assert WRITE_SECONDS.value < seconds < 100
    assert rate == pytest.approx(bytes_read / seconds)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("draining", [False, True], ids=["close", "drain"])
@pytest.mark.parametrize("size", [40_000, 500_000])
def test_slow_reader_gets_its_last_answer_whole(size: int, draining: bool, tls: bool) -> None:
    """A connection with unread bytes is neither idle nor lingering; lingering starts after the last byte was read."""
    with serving(sndbuf=4_096, tls=tls) as server, connect(server, rcvbuf=2_048) as client:
        server.app.size = size
        (connection,) = server_sides(server, client)
        client.sendall(get(b"/big", b"" if draining else b"Connection: close\r\n"))
        eventually(lambda: "/big" in server.app.calls)
        server.run_on_loop(lambda: setattr(server.worker_state, "draining", draining))
        assert 0 < server.run_on_loop(lambda: connection.pending_size)
        server.advance(LINGER_SECONDS.value + 2)
        reader = AnswerReader(client)

        assert len(reader.read_answer().body) == size
        if draining:
            server.advance(IDLE_SECONDS.value)
        reader.expect_end()
        assert not {"write_timeout", "linger_timeout", "idle_made_room"} & set(server.app.refusals)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_slow_reader_is_not_closed_for_a_new_connection(tls: bool) -> None:
    """A connection with unread bytes is not idle, however long its client sends nothing."""
    with serving(sndbuf=4_096, tls=tls) as server, connect(server, rcvbuf=2_048) as client:
        server.app.size = 40_000  # below WRITE_BUFFER_SIZE, so that writing is not paused
        client.sendall(get(b"/big"))
        eventually(lambda: "/big" in server.app.calls)
        server.advance(IDLE_SECONDS.value + 2)

        assert not server.run_on_loop(server.worker_state.deadline_sweep.close_longest_idle)
        assert len(AnswerReader(client).read_answer().body) == 40_000


@pytest.mark.parametrize("close", [False, True], ids=["keep-alive", "close"])
def test_peer_that_ends_tls_gets_what_was_written(close: bool) -> None:
    """A client that sends close_notify and reads on receives its whole answer."""
    with serving(sndbuf=4_096, tls=True) as server, connect(server, rcvbuf=2_048) as client:
        server.app.size = 500_000
        (connection,) = server_sides(server, client)
        client.sendall(get(b"/big", b"Connection: close\r\n" if close else b""))
        eventually(lambda: server.run_on_loop(lambda: connection.pending_size) > 0)
        client.settimeout(0.0)
        received = b""
        try:
            with contextlib.suppress(ssl.SSLWantReadError):  # sends close_notify without waiting for the server's
                client.unwrap()  # type: ignore[attr-defined]  # `connect` returns an SSLSocket on TLS
            client.settimeout(HANG_SECONDS)
            server.advance(LINGER_SECONDS.value + 2)
            while piece := client.recv(65_536):
                received += piece
        except ssl.SSLError as error:
            if error.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":  # OpenSSL refuses data that arrived meanwhile
                pytest.skip("the client's TLS library does not read on")
        except OSError:
            pass  # the connection may end with a reset after its last byte

        assert received.endswith(b"x" * 500_000)


def test_no_deadline_while_a_request_runs_on_the_pool() -> None:
    """The time that the application takes is not charged to the client."""
    with serving(clock_step=0.5) as server, connect(server) as client:
        client.sendall(get(b"/slow") + b"GE")
        eventually(lambda: "/slow" in server.app.calls)
        now = server.worker_state.now
        eventually(lambda: server.worker_state.now > now + 200)
        server.app.gate.set()
        client.sendall(GOOD[2:])
        reader = AnswerReader(client)

        assert [reader.read_answer().environ["PATH_INFO"] for _ in range(2)] == ["/slow", "/good"]


def test_peer_that_does_not_close_is_disconnected() -> None:
    """A peer that got its last answer and does not close is disconnected after LINGER_SECONDS."""
    with serving(clock_step=0.1) as server, connect(server) as client:
        client.sendall(b"nonsense\r\n")
        eventually(lambda: bool(server.lost))

        assert AnswerReader(client).read_answer().status == 400


def test_time_in_which_the_loop_stood_still_is_not_charged() -> None:
    """However long the loop did not run, one tick advances the clock of the deadlines by half a second."""
    moment = [100.0]
    loop = asyncio.new_event_loop()
    worker_state = WorkerState(EchoApplication(), loop, logging.getLogger("test"), clock=lambda: moment[0])
    start = worker_state.now
    moment[0] += 60.0
    worker_state.tick()
    loop.close()

    assert worker_state.now - start == 0.5


# -- draining ----------------------------------------------------------------------------------------------------------


def test_drain_answers_with_close() -> None:
    """While draining, a request is still answered, with `Connection: close`, and idle connections are closed."""
    with serving() as server, connect(server) as busy, connect(server) as silent:
        for client in (busy, silent):
            client.sendall(GOOD)
            assert AnswerReader(client).read_answer().status == 200
        server.run_on_loop(lambda: setattr(server.worker_state, "draining", True))
        busy.sendall(GOOD)
        reader = AnswerReader(busy)

        assert reader.read_answer().headers["connection"] == "close"
        reader.expect_end()
        server.advance(IDLE_SECONDS.value + 1)
        AnswerReader(silent).expect_end()


@pytest.mark.parametrize("count", [20, 200], ids=["parsed", "unparsed"])
@pytest.mark.parametrize("first", [get(b"/slow"), GOOD], ids=["pool", "inline"])
def test_drain_answers_what_was_received(first: bytes, count: int) -> None:
    """Requests that wait when the drain starts, parsed or not, are answered in order; only the last one says close."""
    with serving() as server, connect(server) as client:
        (connection,) = server_sides(server, client)

        def read() -> None:
            connection.data_received(first + b"".join(get(b"/%d" % i) for i in range(count)))
            server.worker_state.draining = True

        server.run_on_loop(read)
        server.app.gate.set()
        reader = AnswerReader(client)
        answers = [reader.read_answer() for _ in range(count + 1)]
        reader.expect_end()

        assert [f"/{i}" for i in range(count)] == [answer.environ["PATH_INFO"] for answer in answers[1:]]
        assert [None] * count + ["close"] == [answer.headers.get("connection") for answer in answers]


def test_drain_answers_all_requests_of_one_read() -> None:
    """Requests that arrive in one read during a drain are all answered; only the last one says close."""
    with serving() as server, connect(server) as client:
        server.run_on_loop(lambda: setattr(server.worker_state, "draining", True))
        client.sendall(GOOD * 3)
        reader = AnswerReader(client)
        answers = [reader.read_answer() for _ in range(3)]
        reader.expect_end()

        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
