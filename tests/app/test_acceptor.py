"""What the acceptor does to its sockets; sharing, fullness and starvation are tested on real workers."""

import asyncio
import logging
import socket

from app.acceptor import Acceptor, Alone
from app.service import Service
from core.limits import KERNEL_BUFFER_SIZE


def test_the_kernel_holds_little_of_what_is_not_read() -> None:
    """What is accepted inherits the bound on bytes that are not sent yet."""
    loop = asyncio.new_event_loop()
    service = Service(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Acceptor(service, [listener], Alone(), 1, None)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert KERNEL_BUFFER_SIZE.value == accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    loop.close()
