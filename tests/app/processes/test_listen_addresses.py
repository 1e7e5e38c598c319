"""Addresses to listen on: which are free, and how clients write them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.processes.listen_addresses import (
    Address,
    curl_of,
    has_inherited_sockets,
    name_of,
    require_free_addresses,
    url_of,
)


def listening(family: int, name: Any) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(name)
    listener.listen()
    return listener


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_taken_port_is_refused_with_a_remedy(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with listening(family, (host, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on {host}:{port} .*set another PORT"):
            require_free_addresses([("127.0.0.1", 0), (host, port)])


def test_a_port_may_be_shared_by_option() -> None:
    """With reuse_port, other servers that have the option, too, may listen already."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()

        require_free_addresses([other.getsockname()], reuse_port=True)
        with pytest.raises(ValueError, match="Address already in use"):
            require_free_addresses([other.getsockname()])


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A path for a Unix socket; relative, because such paths have at most 107 bytes."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield "socket"
    os.chdir(before)


def test_a_new_path_and_an_abandoned_socket_are_free(path: str) -> None:
    """A server that was killed leaves its socket behind, and Gunicorn replaces it."""
    require_free_addresses([path, "\0mlsdm-test"])
    listening(socket.AF_UNIX, path).close()

    require_free_addresses([path])


@pytest.mark.parametrize("backlog", [0, 8])
def test_the_socket_of_another_server_is_not_taken_away(path: str, backlog: int) -> None:
    """Gunicorn would remove it. It counts as in use also while its backlog is full."""
    with listening(socket.AF_UNIX, path) as other, socket.socket(socket.AF_UNIX) as first:
        other.listen(backlog)
        first.connect(path)
        with pytest.raises(ValueError, match=r"cannot listen on unix:socket .*in use"):
            require_free_addresses([path])


def test_other_files_and_directories_are_refused(path: str) -> None:
    Path(path).write_text("a file")
    with pytest.raises(ValueError, match="not a socket"):
        require_free_addresses([path])
    with pytest.raises(ValueError, match="missing must exist"):
        require_free_addresses(["missing/socket"])


def test_inherited_sockets_make_other_addresses_void() -> None:
    """systemd says for which process it has passed sockets."""
    activated = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}

    assert has_inherited_sockets([("127.0.0.1", 8000)], activated)
    assert has_inherited_sockets([3], {})
    assert not has_inherited_sockets([("127.0.0.1", 8000)], {**activated, "LISTEN_PID": "1"})
    assert not has_inherited_sockets([("127.0.0.1", 8000)], {})


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("0.0.0.0", 80), "0.0.0.0:80"),
        (("::", 80, 0, 0), "[::]:80"),
        (("127.0.0.1", 8000), "127.0.0.1:8000"),
        ("/run/s", "unix:/run/s"),
    ],
)
def test_the_warning_names_what_is_bound(address: Address, name: str) -> None:
    """Not one of the addresses at which a server for every interface can be reached."""
    assert name_of(address) == name


@pytest.mark.parametrize(
    ("address", "url", "curl"),
    [
        (("127.0.0.1", 8000), "http://127.0.0.1:8000", ("", "http://127.0.0.1:8000")),
        (("0.0.0.0", 80), "http://127.0.0.1:80", ("", "http://127.0.0.1:80")),
        (("::", 80, 0, 0), "http://127.0.0.1:80", ("", "http://127.0.0.1:80")),
        (("2001:db8::1", 80, 0, 0), "http://[2001:db8::1]:80", ("", "http://[2001:db8::1]:80")),
        ("/run/s", "unix:/run/s", (" --unix-socket /run/s", "http://localhost")),
        (b"\0name", "unix:@name", (" --abstract-unix-socket name", "http://localhost")),
    ],
)
def test_how_clients_write_an_address(address: Address, url: str, curl: tuple[str, str]) -> None:
    assert url_of(address, "http") == url
    assert curl_of(address, "http") == curl
