"""Proxies: the peers that are believed when they say for whom they ask.

`server.trusted_proxies` lists them, as single addresses and as networks. This file owns the grammar of that list and
nothing else: who reads forwarding headers, and what of them, is the HTTP layer's business. An empty list, the default,
believes nobody, because a header that anybody may send says nothing.

A network whose host bits are set (`10.0.0.1/8`) is refused: it is as often a typing error in the length as in the
address, and both readings open a door. So is a scope (`fe80::1%eth0`): addresses are compared without one.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network

from core.settings.setting import InvalidText, quote_if_needed

Network = IPv4Network | IPv6Network


def networks(text: str) -> tuple[Network, ...]:
    """Return the networks that `text` lists, separated by commas; () when it is empty. An address is a network of one.

    Raises InvalidText, which names every item that is none.
    """
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    faults = [fault for fault in map(_fault, items) if fault]
    if faults:
        raise InvalidText("has " + "; ".join(faults))
    return tuple(ip_network(item) for item in items)


def _fault(item: str) -> str:
    """Return what is wrong with an item; "" when it is a network."""
    if not item:
        return "an empty item"
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
