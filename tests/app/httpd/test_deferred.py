"""Answers that an application defers: on real sockets, and on a real Gunicorn that stops or reloads."""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from app.httpd.connection_state import QUEUEING
from testing.eventually import eventually
from tests.app.httpd.serving import (
    GOOD,
    AnswerReader,
    EchoApplication,
    RunningServer,
    connect,
    get,
    post,
    reset,
    server_sides,
    serving,
)
from tests.app.httpd.test_gunicorn_worker import APP, Gunicorn, gunicorn


class Environ(dict[str, Any]):
    """An environ that can be watched."""


class Deferring(EchoApplication):
    """Defers /later… until `release`; its future then answers with the path, or raises what `error` says."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[asyncio.Future[Iterable[bytes]], str] = {}
        self.released: asyncio.Event | None = None
        self.cancelled: list[str] = []
        self.error: BaseException | None = None
        self.answered: list[str] = []
        self.environs: list[weakref.ref[Environ]] = []

    def on_answer(self, environ: dict[str, Any], status: str) -> None:
        self.answered.append(f"{status[:3]} {environ['PATH_INFO']}")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Any:
        if not environ["PATH_INFO"].startswith("/later"):
            return super().__call__(environ, start_response)
        self.calls.append(environ["PATH_INFO"])
        if self.released is None:
            self.released = asyncio.Event()
        copy = Environ(environ)
        self.environs.append(weakref.ref(copy))
        start_response("418 Void", [("X-Void", "1")])  # has no effect: the answer is deferred
        task = asyncio.get_running_loop().create_task(self._answer(copy, start_response, self.released))
        self.waiting[task] = environ["PATH_INFO"]
        task.add_done_callback(self.waiting.pop)
        return task

    async def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any], released: asyncio.Event
    ) -> Iterable[bytes]:
        try:
            await released.wait()
        except asyncio.CancelledError:
            self.cancelled.append(environ["PATH_INFO"])
            raise
        if self.error is not None:
            raise self.error
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode(), environ["wsgi.input"].read()]

    def release(self, server: RunningServer) -> None:
        """Let all waiting futures end."""
        assert self.released is not None
        server.run_on_loop(self.released.set)


def wait_until_waiting(server: RunningServer, count: int) -> None:
    """Wait until `count` requests wait for their answers."""
    eventually(lambda: server.run_on_loop(lambda: len(server.app.waiting)) == count)


def test_hundreds_of_deferred_answers_delay_no_other() -> None:
    """While several hundred answers are deferred, others are answered; then each client gets its own."""
    app, count = Deferring(), 400
    with serving(app) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(count)]
        for number, client in enumerate(clients):
            client.sendall(get(b"/later/%d" % number))
        wait_until_waiting(server, count)
        with connect(server) as other:
            other.sendall(GOOD)
            assert AnswerReader(other).read_answer().status == 200
        app.release(server)
        answers = [AnswerReader(client).read_answer() for client in clients]

        assert [answer.body for answer in answers] == [b"/later/%d" % number for number in range(count)]
        assert {answer.status for answer in answers} == {200}
        assert "x-void" not in answers[0].headers
        assert app.cancelled == []


def test_requests_behind_a_deferred_answer_wait_in_order() -> None:
    """Pipelined requests are answered after the deferred one, in the order in which they were sent."""
    app = Deferring()
    with serving(app) as server, connect(server) as client:
        client.sendall(get(b"/later/1") + GOOD + get(b"/later/2") + get(b"/last"))
        wait_until_waiting(server, 1)
        (connection,) = server_sides(server, client)
        eventually(lambda: server.run_on_loop(connection.snapshot).waiting_count == 3)
        assert server.run_on_loop(connection.snapshot).state == QUEUEING
        assert app.calls == ["/later/1"]
        app.release(server)
        reader = AnswerReader(client)
        first, good, second, last = (reader.read_answer() for _ in range(4))

        assert (first.body, second.body) == (b"/later/1", b"/later/2")
        assert (good.environ["PATH_INFO"], last.environ["PATH_INFO"]) == ("/good", "/last")


def test_deferred_head_has_the_length_and_no_body() -> None:
    """RFC 9110 §9.3.2, for an answer that comes later too."""
    app = Deferring()
    with serving(app) as server, connect(server) as client:
        client.sendall(b"HEAD /later HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until_waiting(server, 1)
        app.release(server)
        answer = AnswerReader(client).read_answer(head=True)

        assert (answer.status, answer.headers["content-length"]) == (200, "6")


@pytest.mark.parametrize("leave", [socket.socket.close, reset, lambda client: client.shutdown(socket.SHUT_WR)])
@pytest.mark.parametrize("behind", [b"", GOOD], ids=["alone", "with a request behind"])
def test_it_is_cancelled_when_its_client_leaves(leave: Callable[[socket.socket], None], behind: bytes) -> None:
    """The future is cancelled, no answer is counted, and nothing of the request is kept."""
    app, size = Deferring(), 200_000
    with serving(app) as server, connect(server) as client:
        client.sendall(post(b"Content-Length: %d\r\n" % size, b"x" * size).replace(b"POST /", b"POST /later") + behind)
        wait_until_waiting(server, 1)
        assert server.run_on_loop(lambda: server.worker_state.bodies.size) > 0
        leave(client)
        eventually(lambda: app.cancelled == ["/later"])
        eventually(lambda: len(server.lost) == 1)
        wait_until_waiting(server, 0)
        gc.collect()

        assert server.run_on_loop(lambda: (server.worker_state.bodies.size, server.worker_state.pipelines.size)) == (
            0,
            0,
        )
        assert app.environs[0]() is None
        assert app.answered == []
        with connect(server) as other:
            other.sendall(GOOD)
            assert AnswerReader(other).read_answer().status == 200


def test_no_answer_is_deferred_for_a_client_that_has_left() -> None:
    """A client sends its request and shuts its side at once, while an earlier one is on the pool."""
    app = Deferring()
    with serving(app) as server, connect(server) as client:
        client.sendall(get(b"/slow") + get(b"/later"))
        client.shutdown(socket.SHUT_WR)
        eventually(lambda: "/slow" in app.calls)
        app.gate.set()

        assert AnswerReader(client).read_answer().environ["PATH_INFO"] == "/slow"
        assert client.recv(1) == b""
        wait_until_waiting(server, 0)


def test_an_exception_is_a_500_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What the future raises is answered like what an application raises; the connection goes on."""
    app = Deferring()
    app.error = ValueError("in the coroutine")
    with serving(app) as server, connect(server) as client, caplog.at_level(logging.ERROR):
        client.sendall(get(b"/later", b"X-Request-ID: r-1\r\n"))
        wait_until_waiting(server, 1)
        app.release(server)
        reader = AnswerReader(client)
        answer = reader.read_answer()
        client.sendall(GOOD)

        assert (answer.status, answer.json["code"]) == (500, "internal_error")
        assert reader.read_answer().status == 200
        (record,) = caplog.records
        assert record.exc_info is not None
        assert (str(record.exc_info[1]), getattr(record, "request_id", "")) == ("in the coroutine", "r-1")
        assert app.answered == ["500 /later", "200 /good"]


def test_a_future_that_is_cancelled_from_within_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """The client is still there, so it gets an answer."""
    app = Deferring()
    with serving(app) as server, connect(server) as client, caplog.at_level(logging.CRITICAL):
        client.sendall(get(b"/later"))
        wait_until_waiting(server, 1)
        server.run_on_loop(lambda: [task.cancel() for task in tuple(app.waiting)])

        assert AnswerReader(client).read_answer().status == 500


def test_a_route_on_the_pool_cannot_defer(caplog: pytest.LogCaptureFixture) -> None:
    """A route that runs on a thread cannot defer its answer."""

    class Wrong(EchoApplication):
        def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Any:
            if environ["PATH_INFO"] != "/slow":
                return super().__call__(environ, start_response)
            return asyncio.Future(loop=loop)

    loop = asyncio.new_event_loop()
    with serving(Wrong()) as server, connect(server) as client, caplog.at_level(logging.CRITICAL):
        client.sendall(get(b"/slow") + GOOD)
        reader = AnswerReader(client)

        assert [reader.read_answer().status for _ in range(2)] == [500, 200]
    loop.close()


def test_a_draining_worker_waits_for_deferred_answers() -> None:
    """A worker that drains answers those that wait, says close to them, and closes."""
    app = Deferring()
    with serving(app) as server, connect(server) as client:
        client.sendall(get(b"/later/1") + get(b"/later/2"))
        wait_until_waiting(server, 1)
        server.worker_state.draining = True
        app.release(server)
        reader = AnswerReader(client)
        answers = [reader.read_answer() for _ in range(2)]

        assert [answer.body for answer in answers] == [b"/later/1", b"/later/2"]
        assert [answer.headers.get("connection") for answer in answers] == [None, "close"]
        reader.expect_end()


# -- on a real Gunicorn ----------------------------------------------------------------------------------------------

LATER = (
    APP
    + """
import asyncio

class Later(App):
    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] != "/later":
            return super().__call__(environ, start_response)
        return asyncio.get_running_loop().create_task(self.later(start_response))

    async def later(self, start_response):
        note("later")
        try:
            while not (HERE / "gate").exists():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            note("cancelled")
            raise
        start_response("200 OK", [])
        return [json.dumps({"pid": os.getpid()}).encode()]

app = Later()
"""
)


def is_listening(address: tuple[str, int]) -> bool:
    """Return whether any process still accepts connections: arbiter and worker close the socket when they end."""
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(server: Gunicorn, count: int) -> list[socket.socket]:
    """Send requests whose answers are deferred, and wait until they wait."""
    clients = []
    for _ in range(count):
        client = server.connect().sock
        assert client is not None
        client.sendall(get(b"/later"))
        clients.append(client)
    eventually(lambda: len(server.notes("later")) == count)
    return clients


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_that_ends_sends_its_deferred_answers(tmp_path: Path, number: int) -> None:
    """TERM and HUP: deferred answers are sent, with `Connection: close`, before the worker exits."""
    with gunicorn(tmp_path, app=LATER) as server:
        (pid,) = server.notes("open")
        clients = ask(server, 20)
        server.signal(number)
        if number == signal.SIGHUP:
            eventually(lambda: len(server.notes("open")) == 2)
        else:
            address = server.address
            eventually(lambda: not is_listening(address))
        (tmp_path / "gate").touch()
        answers = [AnswerReader(client).read_answer() for client in clients]

        assert [(answer.headers["connection"], json.loads(answer.body)) for answer in answers] == [
            ("close", {"pid": pid})
        ] * 20
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        eventually(lambda: server.notes("close") == [pid])
        assert server.notes("cancelled") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_deferred_answers_left_at_the_end_of_a_drain_are_cancelled(tmp_path: Path, number: int) -> None:
    """Before the graceful timeout is over the coroutines are cancelled, and the worker exits in good order."""
    with gunicorn(tmp_path, "--graceful-timeout", "2", app=LATER) as server:
        (pid,) = server.notes("open")
        clients = ask(server, 20)
        server.signal(number)
        eventually(lambda: server.notes("cancelled") == [pid] * 20)
        eventually(lambda: server.notes("close") == [pid])

        assert [client.recv(1) for client in clients] == [b""] * 20


def test_quit_cancels_deferred_answers_at_once(tmp_path: Path) -> None:
    """SIGQUIT: coroutines get their CancelledError all the same."""
    with gunicorn(tmp_path, app=LATER) as server:
        clients = ask(server, 3)
        server.signal(signal.SIGQUIT)
        server.wait()

        assert len(server.notes("cancelled")) == 3
        assert [client.recv(1) for client in clients] == [b""] * 3
