"""What the acceptor does to its sockets; sharing, fullness and starvation are tested on real workers."""

import asyncio
import contextlib
import logging
import socket
import time

from app.httpd.acceptor import BATCH_COUNT, Acceptor, SingleWorker
from app.httpd.connection import Connection
from app.httpd.worker_state import WorkerState
from core.limits import KEEPALIVE_SECONDS, KERNEL_BUFFER_SIZE


def test_the_kernel_holds_little_of_what_is_not_read() -> None:
    """What is accepted inherits the bound on bytes that are not sent yet."""
    loop = asyncio.new_event_loop()
    service = WorkerState(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Acceptor(service, [listener], SingleWorker(), 1, None)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert KERNEL_BUFFER_SIZE.value == accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    loop.close()


def test_more_are_accepted_where_turns_are_long() -> None:
    """New connections do not wait for four at a time to have their turn behind a thousand busy ones."""
    count = 100
    turns = [0]
    loop = asyncio.new_event_loop()
    service = WorkerState(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * count))
        listener.setblocking(False)
        for _ in range(count):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        acceptor = Acceptor(service, [listener], SingleWorker(), 2 * count, None)

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
        for connection in tuple(service.connections):
            assert isinstance(connection, Connection)
            connection.cut_off(KEEPALIVE_SECONDS, "The test is over")
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    assert turns[0] < count // BATCH_COUNT // 2
