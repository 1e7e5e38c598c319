"""Decides which request bodies a worker reads, and counts the bytes of those that it holds.

A large body is read only if the application wants it (`wants_body`), so a client that may not send it takes no memory.
The bytes of large bodies count in one budget of the worker (`app.httpd.byte_budget`). The environ of a request says how
many are its own; they are released when the request is answered, refused or abandoned.

Threading: the loop's thread only.
"""

from collections.abc import Callable
from typing import Final
from wsgiref.types import WSGIEnvironment

from app.httpd.byte_budget import ByteBudget
from app.httpd.request import BODY_RESERVED

_UNANNOUNCED: Final = frozenset({"HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING"})


class BodyUnwanted(Exception):
    """The application does not want the body that is being read."""


class BodyAdmission:
    """The bodies of one worker."""

    __slots__ = ("_budget", "wants")

    def __init__(self, budget: ByteBudget, wants_body: Callable[[WSGIEnvironment], bool]) -> None:
        self._budget = budget
        #: Whether the application wants the body of the request that an environ describes.
        self.wants = wants_body

    @property
    def size(self) -> int:
        """Bytes of large bodies that the worker holds now."""
        return self._budget.size

    def reserve(self, size: int, environ: WSGIEnvironment) -> None:
        """Count `size` more bytes of a large body; 0 when the body is only announced.

        The application is asked once for a body whose size was announced, and for any other again at each call, with
        the size so far as CONTENT_LENGTH. Raises BodyUnwanted, and Refusal when the budget is used up.
        """
        if BODY_RESERVED not in environ or not _UNANNOUNCED.isdisjoint(environ):
            if not self.wants(environ):
                raise BodyUnwanted
            environ.setdefault(BODY_RESERVED, 0)
        self._budget.reserve(size)
        environ[BODY_RESERVED] += size

    def release(self, environ: WSGIEnvironment) -> None:
        """Release what was reserved for a request that has ended."""
        self._budget.release(environ.pop(BODY_RESERVED, 0))
