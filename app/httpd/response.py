"""The standing headers: what every answer says, whoever wrote it: routes, refusals of a connection, 500s.

They tell a browser that an answer of this service is data and nothing else: it is not sniffed for another type, not
kept, not framed, loads nothing, and gives no address away. Over TLS they also ask for TLS next time (RFC 6797 §7.2:
never over plain HTTP). No Server field is among them: the version of a server helps nobody but an attacker.

Owns the lines, made once when the worker starts; an answer appends one finished string, beside the Date line that is
made once a second. An application may replace a default, or add a field, for all of its answers
(`standing_headers`); what it sets for one answer replaces the standing line of that name there (a documentation page
needs another policy), because two Content-Security-Policy fields would both hold, and of two X-Frame-Options neither.
"""

from collections.abc import Iterable
from typing import Final

from app.httpd.wsgi_call import header_line

DEFAULT: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),  # RFC 9111 §5.2.2.5; memories and decisions are nobody's to keep
    ("X-Frame-Options", "DENY"),  # for what is older than frame-ancestors
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
# A year. Without includeSubDomains: what else lives under the operator's name is not ours to decide.
SECURE: Final = (("Strict-Transport-Security", "max-age=31536000"),)


class DefaultHeaders:
    """The standing lines of one service."""

    __slots__ = ("lines", "text")

    def __init__(self, own: Iterable[tuple[str, str]] = (), *, secure: bool) -> None:
        """`own` are the application's, which win; `secure` says that this service speaks TLS.

        Raises ValueError when a field of `own` would be more than one line.
        """
        #: each field's line by its name in lower case
        self.lines: dict[str, str] = {}
        for name, value in (*DEFAULT, *(SECURE if secure else ()), *own):
            line, key = header_line(name, value)
            self.lines[key] = line
        #: all lines together
        self.text = "".join(self.lines.values())

    def without(self, keys: Iterable[str]) -> str:
        """Return all lines but those of the names `keys`, which are in lower case."""
        left_out = frozenset(keys)
        return "".join(line for key, line in self.lines.items() if key not in left_out)
