"""The URL of a server, as `--url` takes it: http or https, a host, and optionally a port and a path prefix."""

import urllib.parse


class InvalidUrl(ValueError):
    """A text is no URL of a server; the message says what was expected."""


def parse(url: str) -> urllib.parse.SplitResult:
    """Return the parts of a URL. Raises InvalidUrl.

    A port above 65,535 is refused here: `connect` would take it modulo 65,536, and ask another server.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # an unclosed bracket, or a port that is not 0–65535
        usable = False
    if not usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidUrl(f"the URL {url!r} cannot be used: expected http://HOST[:PORT] or https://HOST[:PORT]")
    return parts
