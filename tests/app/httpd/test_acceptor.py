"""The acceptor on a loop of its own. Sharing, full workers and lack of descriptors: test_gunicorn_worker.py."""

import asyncio
import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable

import uvloop

from app.httpd.acceptor import BATCH_COUNT, Acceptor, SingleWorker
from app.httpd.connection_caps import ConnectionCaps
from app.httpd.worker_state import WorkerState
from core.limits import KERNEL_BUFFER_SIZE
from testing.eventually import HANG_SECONDS


def test_accepted_sockets_inherit_the_bound_on_unsent_bytes() -> None:
    """The kernel holds at most KERNEL_BUFFER_SIZE unsent bytes of each accepted connection."""
    loop = asyncio.new_event_loop()
    worker_state = WorkerState(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Acceptor(worker_state, [listener], SingleWorker(), ConnectionCaps(1, 1, 64), None)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == KERNEL_BUFFER_SIZE.value
    loop.close()


def test_long_turns_accept_more_connections() -> None:
    """When the turns of the loop are long, more than BATCH_COUNT connections are accepted in each."""
    count = 100
    turns = [0]
    loop = asyncio.new_event_loop()
    worker_state = WorkerState(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * count))
        listener.setblocking(False)
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(count)]
        acceptor = Acceptor(worker_state, [listener], SingleWorker(), ConnectionCaps(2 * count, 1, 64), None)

        def busy() -> None:
            turns[0] += 1
            time.sleep(0.02)
            if acceptor.open_count < count:
                loop.call_soon(busy)
            else:
                loop.call_soon(loop.stop)

        acceptor.start()
        loop.call_soon(busy)
        loop.run_forever()
        acceptor.stop()
        for client in clients:
            client.close()
        deadline = time.monotonic() + HANG_SECONDS
        while acceptor.open_count and time.monotonic() < deadline:
            loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    assert acceptor.open_count == 0
    assert turns[0] < count // BATCH_COUNT // 2


def test_a_crowd_above_the_cap_leaves_nothing_behind() -> None:
    """Connections that make way while they are being opened are closed, counted as closed and forgotten."""
    count = 100
    loop = uvloop.new_event_loop()
    worker_state = WorkerState(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * count))
        listener.setblocking(False)
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(count)]
        acceptor = Acceptor(worker_state, [listener], SingleWorker(), ConnectionCaps(1, 1, 64), None)
        acceptor.start()

        def run_until(done: Callable[[], bool]) -> None:
            deadline = time.monotonic() + HANG_SECONDS
            while not done() and time.monotonic() < deadline:
                loop.run_until_complete(asyncio.sleep(0.01))

        run_until(lambda: acceptor.open_count == 2 and not select.select([listener], [], [], 0)[0])
        assert (acceptor.open_count, len(worker_state.connections)) == (2, 2)
        for client in clients:
            client.close()
        run_until(lambda: not acceptor.open_count)
        acceptor.stop()
    loop.close()

    assert (acceptor.open_count, worker_state.connections) == (0, set())
