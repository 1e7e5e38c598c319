"""The refusal of a request by the connection itself, before or instead of the application.

A refused request gets one problem document; then the connection closes, because a parser that resynchronises would
let an attacker choose the byte at which it starts (RFC 9112 §11.2).
"""

from core.limits import Limit


class Refusal(Exception):
    """One refusal.

    `status` is the HTTP status, `code` the stable name under which it is counted, `detail` a sentence for the author
    of the client. `retry_after` is in seconds, for a client that did nothing wrong and may come back; otherwise 0.
    `lines` are further header lines of the answer, each with its CRLF.
    """

    def __init__(self, status: int, code: str, detail: str, *, retry_after: int = 0, lines: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.lines = lines

    @classmethod
    def over(cls, limit: Limit, what: str) -> "Refusal":
        """Return the refusal of a request in which `what` exceeds `limit`."""
        return cls(limit.status, limit.code, f"{what} is more than the {limit.value} {limit.unit} this server takes.")
