"""The grammar of `server.trusted_proxies`: addresses, networks and the word `unix`, separated by commas.

How forwarding headers are read is defined in the HTTP layer. The default is an empty list, which trusts no such header,
because any client can send one.

A network with host bits (`10.0.0.1/8`) is refused: either the length or the address is a typing error, and one of the
two readings trusts too many peers. IPv4 in the notation of IPv6 (`::ffff:192.0.2.1`) means the IPv4 address, as it
does in the addresses of clients. `unix` stands for the peers on Unix sockets, which have no address; the permissions
of the socket decide who they are. A scope (`fe80::1%eth0`) is refused, because addresses are compared without scopes.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal, TypeAlias

from core.settings.setting import InvalidText, quote_if_needed

UNIX: Final = "unix"
Network: TypeAlias = IPv4Network | IPv6Network
Proxy: TypeAlias = Network | Literal["unix"]
_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # RFC 4291 §2.5.5.2


def networks(text: str) -> tuple[Proxy, ...]:
    """Return the networks in `text`, and UNIX as it is; () when it is empty. An address is a network of one.

    Raises InvalidText, which names every item that is not a network.
    """
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    faults = [fault for fault in map(_fault, items) if fault]
    if faults:
        raise InvalidText("has " + "; ".join(faults))
    return tuple(UNIX if item == UNIX else _plain(ip_network(item)) for item in items)


def _plain(network: Network) -> Network:
    """Return a network of IPv4 addresses in the notation of IPv6 as IPv4; any other as it is."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - _MAPPED.prefixlen))
    return network


def _fault(item: str) -> str:
    """Return the finding about an item; "" when it is a network."""
    if not item:
        return "an empty item"
    if item == UNIX:
        return ""
    wide = _parsed(item, strict=False)
    if wide is None:
        return f"{quote_if_needed(item)}, which is neither an address nor a network"
    if _parsed(item, strict=True) is None:
        return f"{quote_if_needed(item)}, whose address has bits beyond its length (perhaps {wide})"
    return ""


def _parsed(item: str, *, strict: bool) -> Network | None:
    try:
        return None if "%" in item else ip_network(item, strict=strict)
    except ValueError:
        return None
