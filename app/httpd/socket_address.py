"""The two ends of a connection as (address, port), whatever kind of socket it has.

A TCP socket names its ends by address and port, with two more members for IPv6; a Unix socket by a path, which is empty
for the client. So nothing else in this package takes a socket's name apart.
"""

from typing import Any, Final

#: What stands for the address of a client on a Unix socket: in REMOTE_ADDR, log lines and rate limits.
UNIX: Final = "unix"
_MAPPED: Final = "::ffff:"  # RFC 4291 §2.5.5.2: an IPv4 client of a socket for both families
_PORTS: Final = {"http": 80, "https": 443}


def peer_of(name: Any) -> tuple[str, int]:
    """Return address and port of the client whose socket has this name; an IPv4 address is always in IPv4 notation."""
    if not isinstance(name, tuple):
        return UNIX, 0
    address = str(name[0])
    if address.startswith(_MAPPED) and "." in address:
        address = address[len(_MAPPED) :]
    return address, int(name[1])


def server_of(name: Any, scheme: str) -> tuple[str, int]:
    """Return address and port of our end; those of localhost for a Unix socket, because PEP 3333 allows no empty ones.

    `scheme` is http or https.
    """
    return peer_of(name) if isinstance(name, tuple) else ("localhost", _PORTS[scheme])
