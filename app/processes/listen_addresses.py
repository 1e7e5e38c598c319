"""The addresses that the server listens on: which ones, whether they are free, and how a client writes them.

They come from Gunicorn, not from the configuration: `--bind` overrides `server.host` and `server.port`, and a
supervisor may pass sockets that listen already (systemd's socket activation, `--bind fd://3`). An address is (host,
port, ...) of a TCP socket, or the path of a Unix socket; one in the abstract namespace begins with NUL (unix(7)).

Rejected: leaving the check to Gunicorn, which retries for five seconds, names no remedy, and removes a Unix socket
that another server listens on.
"""

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

Address: TypeAlias = tuple[Any, ...] | str | bytes | int  # int: a descriptor, in the settings of Gunicorn only
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104 - not bound here


def has_inherited_sockets(addresses: Sequence[Address], environ: Mapping[str, str]) -> bool:
    """Return whether the sockets are open already; then Gunicorn ignores all other addresses.

    systemd names the process that it has passed sockets to (sd_listen_fds(3)).
    """
    activated = environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS", "0") != "0"
    return activated or any(isinstance(address, int) for address in addresses)


def require_free_addresses(addresses: Sequence[Address], *, reuse_port: bool = False) -> None:
    """Raise ValueError, with a remedy, when one of the addresses cannot be listened on.

    `reuse_port`: other servers may listen on the same port, if they have the same option.
    """
    for address in addresses:
        if isinstance(address, tuple):
            _require_free_port(address[0], address[1], reuse_port=reuse_port)
        elif isinstance(address, str):
            _require_free_path(address)


def _require_free_port(host: str, port: int, *, reuse_port: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            remedy = (
                "stop what listens there, or set another PORT" if taken else "set HOST to an address of this machine"
            )
            raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}): {remedy}") from error


def _require_free_path(path: str) -> None:
    """Raise ValueError when a Unix socket cannot be made there. One that nobody listens on is replaced."""
    if path.startswith("\0"):
        return
    directory = os.path.dirname(path) or "."
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(f"cannot listen on unix:{path}: {directory} must exist and be writable")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"cannot listen on unix:{path}: it is not a socket; remove it, or bind another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
        except OSError:
            return
    raise ValueError(f"cannot listen on unix:{path} (Address already in use): stop what listens there")


def url_of(address: Address, scheme: str) -> str:
    """Return the URL at which a client of this machine reaches a socket; of a Unix socket, its address."""
    if not isinstance(address, tuple):
        return f"unix:{path_of(address)}"
    host = _EVERYWHERE.get(str(address[0]), str(address[0]))
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address[1]}"


def name_of(address: Address) -> str:
    """Return the address that a socket is bound to, with the port of a TCP socket."""
    if not isinstance(address, tuple):
        return f"unix:{path_of(address)}"
    return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"


def path_of(address: Address) -> str:
    """Return the path of a Unix socket, with @ for the NUL of the abstract namespace."""
    path = os.fsdecode(address) if isinstance(address, bytes) else str(address)
    return path.replace("\0", "@", 1) if path.startswith("\0") else path


def curl_of(address: Address, scheme: str) -> tuple[str, str]:
    """Return the options and the URL with which curl reaches a socket."""
    if isinstance(address, tuple):
        return "", url_of(address, scheme)
    path = path_of(address)
    option = f" --abstract-unix-socket {path[1:]}" if path.startswith("@") else f" --unix-socket {path}"
    return option, f"{scheme}://localhost"
