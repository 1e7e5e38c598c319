"""How connections end: deadlines, lingering and draining, over real sockets."""

import asyncio
import contextlib
import logging
import select
import ssl

import pytest

from app.httpd.worker_state import WorkerState
from core.limits import IDLE_SECONDS, LINGER_SECONDS
from tests.app.httpd.serving import GOOD, PATIENCE, Echo, Reader, connections, dial, get, post, serving, until


def test_head_deadline_is_absolute() -> None:
    """A head that arrives byte by byte does not get more time than one that stops."""
    with serving(pace=0.05) as server, dial(server) as client:
        for byte in get(b"/", b"X: " + b"a" * 8_000 + b"\r\n"):
            client.sendall(bytes([byte]))
            if select.select([client], [], [], 0.005)[0]:
                break
        answer = Reader(client).answer()

        assert (408, "headers_timeout") == (answer.status, answer.json["code"])


def test_first_byte_starts_the_head_deadline() -> None:
    """One byte and then silence is a head that takes too long."""
    with serving(pace=0.2) as server, dial(server) as client:
        client.sendall(b"G")

        assert Reader(client).answer().json["code"] == "headers_timeout"


def test_body_deadline() -> None:
    """A body that does not come is answered with 408."""
    with serving(pace=0.2) as server, dial(server) as client:
        client.sendall(post(b"Content-Length: 5\r\n", b"hel"))
        answer = Reader(client).answer()

        assert (408, "body_timeout", "close") == (answer.status, answer.json["code"], answer.headers["connection"])


def test_silence_ends_quietly() -> None:
    """A connection without requests is closed without an answer."""
    with serving(pace=0.5) as server, dial(server) as client:
        client.sendall(GOOD)
        reader = Reader(client)
        assert reader.answer().status == 200

        reader.end()
        until(lambda: bool(server.lost))
        assert dict(server.app.refusals) == {"keepalive_timeout": 1}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_write_deadline(tls: bool) -> None:
    """A peer that does not read its answer is cut off."""
    with serving(pace=0.5, sndbuf=8_192, tls=tls) as server, dial(server, rcvbuf=8_192) as client:
        client.sendall(get(b"/big"))
        until(lambda: bool(server.lost))

        assert dict(server.app.refusals) == {"reader_too_slow": 1, "write_timeout": 1}
        assert server.service.slow_readers.size == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("draining", [False, True], ids=["close", "drain"])
@pytest.mark.parametrize("size", [40_000, 500_000])
def test_a_slow_reader_gets_its_last_answer_whole(size: int, draining: bool, tls: bool) -> None:
    """What it has not taken is not idle, and lingering begins behind it: it has the time of any answer."""
    with serving(sndbuf=4_096, tls=tls) as server, dial(server, rcvbuf=2_048) as client:
        server.app.size = size
        (connection,) = connections(server, client)
        client.sendall(get(b"/big", b"" if draining else b"Connection: close\r\n"))
        until(lambda: "/big" in server.app.calls)
        server.call(lambda: setattr(server.service, "draining", draining))
        assert 0 < server.call(lambda: connection.pending)
        server.wait(LINGER_SECONDS.value + 2)
        reader = Reader(client)

        assert size == len(reader.answer().body)
        reader.end()
        assert not {"write_timeout", "linger_timeout", "idle_made_room"} & set(server.app.refusals)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_slow_reader_makes_no_room(tls: bool) -> None:
    """A connection whose answer is on its way is not idle, however long it is silent."""
    with serving(sndbuf=4_096, tls=tls) as server, dial(server, rcvbuf=2_048) as client:
        server.app.size = 40_000  # less than would make it wait with its next request
        client.sendall(get(b"/big"))
        until(lambda: "/big" in server.app.calls)
        server.wait(IDLE_SECONDS.value + 2)

        assert not server.call(server.service.deadline_sweep.close_longest_idle)
        assert len(Reader(client).answer().body) == 40_000


@pytest.mark.parametrize("close", [False, True], ids=["keep-alive", "close"])
def test_a_peer_that_ends_tls_gets_what_was_written(close: bool) -> None:
    """close_notify of a client that still reads does not take its answer away."""
    with serving(sndbuf=4_096, tls=True) as server, dial(server, rcvbuf=2_048) as client:
        server.app.size = 500_000
        (connection,) = connections(server, client)
        client.sendall(get(b"/big", b"Connection: close\r\n" if close else b""))
        until(lambda: server.call(lambda: connection.pending) > 0)
        client.settimeout(0.0)
        received = b""
        try:
            with contextlib.suppress(ssl.SSLWantReadError):  # sends ours, and does not wait for the server's
                client.unwrap()  # type: ignore[attr-defined]  # what `dial` returns on TLS
            client.settimeout(PATIENCE)
            server.wait(LINGER_SECONDS.value + 2)
            while piece := client.recv(65_536):
                received += piece
        except ssl.SSLError as error:
            if error.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":  # what came just then, OpenSSL takes for an error
                pytest.skip("the client's own library will not read on")
        except OSError:
            pass  # the end of the connection, after its last byte

        assert received.endswith(b"x" * 500_000)


def test_no_deadline_while_the_application_works() -> None:
    """The time that a request spends on the pool is not the client's."""
    with serving(pace=0.5) as server, dial(server) as client:
        client.sendall(get(b"/slow") + b"GE")
        until(lambda: "/slow" in server.app.calls)
        now = server.service.now
        until(lambda: server.service.now > now + 200)
        server.app.gate.set()
        client.sendall(GOOD[2:])
        reader = Reader(client)

        assert [reader.answer().environ["PATH_INFO"] for _ in range(2)] == ["/slow", "/good"]


def test_lingering_ends() -> None:
    """A peer that was answered for the last time and neither reads on nor closes is cut off."""
    with serving(pace=0.1) as server, dial(server) as client:
        client.sendall(b"nonsense\r\n")
        until(lambda: bool(server.lost))

        assert Reader(client).answer().status == 400


def test_clock_is_patient() -> None:
    """Time during which the loop stood still is not held against the clients."""
    moment = [100.0]
    loop = asyncio.new_event_loop()
    service = WorkerState(Echo(), loop, logging.getLogger("test"), clock=lambda: moment[0])
    start = service.now
    moment[0] += 60.0
    service.tick()
    loop.close()

    assert service.now - start == 0.5


# -- draining ----------------------------------------------------------------------------------------------------------


def test_drain_answers_with_close() -> None:
    """While draining, a request is still served, its answer says close, and silent connections end."""
    with serving(pace=0.02) as server, dial(server) as busy, dial(server) as silent:
        for client in (busy, silent):
            client.sendall(GOOD)
            assert Reader(client).answer().status == 200
        server.call(lambda: setattr(server.service, "draining", True))
        busy.sendall(GOOD)
        reader = Reader(busy)

        assert reader.answer().headers["connection"] == "close"
        reader.end()
        Reader(silent).end()


@pytest.mark.parametrize("count", [20, 200], ids=["parsed", "unparsed"])
@pytest.mark.parametrize("first", [get(b"/slow"), GOOD], ids=["pool", "inline"])
def test_drain_answers_what_was_received(first: bytes, count: int) -> None:
    """Requests that wait when the drain begins, parsed or not, are answered in order; only the last says close."""
    with serving() as server, dial(server) as client:
        (connection,) = connections(server, client)

        def read() -> None:
            connection.data_received(first + b"".join(get(b"/%d" % i) for i in range(count)))
            server.service.draining = True

        server.call(read)
        server.app.gate.set()
        reader = Reader(client)
        answers = [reader.answer() for _ in range(count + 1)]
        reader.end()

        assert [f"/{i}" for i in range(count)] == [answer.environ["PATH_INFO"] for answer in answers[1:]]
        assert [None] * count + ["close"] == [answer.headers.get("connection") for answer in answers]


def test_drain_answers_a_whole_read() -> None:
    """Requests that come in one read while draining are answered too."""
    with serving() as server, dial(server) as client:
        server.call(lambda: setattr(server.service, "draining", True))
        client.sendall(GOOD * 3)
        reader = Reader(client)
        answers = [reader.answer() for _ in range(3)]
        reader.end()

        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
