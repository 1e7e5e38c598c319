"""The two ends of a connection, whatever kind of socket it has."""

import socket
from typing import Any

import pytest

from app.httpd.socket_address import UNIX, peer_of, server_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("192.0.2.1", 7), ("192.0.2.1", 7)),
        (("2001:db8::1", 7, 0, 0), ("2001:db8::1", 7)),
        (("::ffff:192.0.2.1", 7, 0, 0), ("192.0.2.1", 7)),
        (("::ffff:0:1", 7, 0, 0), ("::ffff:0:1", 7)),  # not a mapped address
        (("::1", 7, 0, 0), ("::1", 7)),
        ("", (UNIX, 0)),
        ("/run/client", (UNIX, 0)),
        (b"\0abstract", (UNIX, 0)),
        (None, (UNIX, 0)),
    ],
)
def test_peer(name: Any, expected: tuple[str, int]) -> None:
    assert peer_of(name) == expected


@pytest.mark.parametrize(
    ("name", "scheme", "expected"),
    [
        (("127.0.0.1", 8000), "http", ("127.0.0.1", 8000)),
        (("::ffff:127.0.0.1", 8000, 0, 0), "http", ("127.0.0.1", 8000)),
        ("/run/s", "http", ("localhost", 80)),
        ("/run/s", "https", ("localhost", 443)),
    ],
)
def test_server(name: Any, scheme: str, expected: tuple[str, int]) -> None:
    """PEP 3333 allows no empty SERVER_NAME and SERVER_PORT."""
    assert server_of(name, scheme) == expected


def test_names_of_the_kernel() -> None:
    """What accept returns for a client of each family."""
    for family, at in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, b"\0mlsdm-names")):
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind(at)
            listener.listen()
            client.connect(listener.getsockname())
            accepted, name = listener.accept()
            accepted.close()

            assert peer_of(name)[0] == ("127.0.0.1" if family == socket.AF_INET else UNIX)
