"""The grammar of `server.cors_origins`: origins of web pages, separated by commas.

An origin is what a browser sends in the field Origin (RFC 6454 §6.2): scheme, host and, unless it is the default of the
scheme, port. Browsers write it in lower case, and it is compared as text. So an operator's spelling is brought into
that form here.

Rejected: `*` and patterns. A page of any site could then read the answers of a server that its visitor can reach, which
on a server without keys is everything.
"""

import re
from typing import Final

from core.settings.setting import InvalidText, quote_if_needed

# A scheme of an application, such as tauri, is valid; `null` is what all sandboxed pages send, and names none.
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_PORTS: Final = {"http": "80", "https": "443"}


def origins(text: str) -> frozenset[str]:
    """Return the origins in `text` as browsers send them. Raises InvalidText, which names every item that is none."""
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    faults = [fault for fault in map(_fault, items) if fault]
    if faults:
        raise InvalidText("has " + "; ".join(faults))
    return frozenset(map(_as_sent, items))


def _fault(item: str) -> str:
    """Return the finding about an item; "" when it is an origin."""
    if not item:
        return "an empty item"
    if "*" in item:
        return f"{quote_if_needed(item)}, which is a pattern; every origin is named"
    found = _ORIGIN.fullmatch(item.lower())
    if found is None or int(found[3] or 0) > 65_535:
        return f"{quote_if_needed(item)}, which is no origin"
    return ""


def _as_sent(item: str) -> str:
    scheme, host, port = _ORIGIN.fullmatch(item.lower()).groups()  # type: ignore[union-attr] # `_fault` has matched it
    return f"{scheme}://{host}" + (f":{int(port)}" if port and port != _PORTS.get(scheme) else "")
