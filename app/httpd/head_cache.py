"""Cache of parsed request heads, keyed by their bytes.

A client that keeps its connection open sends the same head again and again, each time with another body. What a head
means follows from its bytes alone, so a head that was parsed and accepted once is looked up instead: 1 µs of an event
instead of 5. Which heads are worth caching, and why no ambiguous head gets in: docs/design/request-parsing.md.

Invariants:
- A head is cached only if method, target and fields, written down in canonical form, give exactly its bytes.
- A cached head contains nothing that belongs to one connection (addresses, scheme) or one request (id, trace).
- Bounded: HEADS_COUNT_MAX heads, each of HEAD_SIZE_MAX bytes and less than 6 kB of memory.
- Heads contain credentials, as do the connections' buffers. They are compared whole, after a lookup by hash, so a
  stranger learns no more from this cache than from the gate's (`app.api.access.gate`).
"""

from collections.abc import Iterable
from typing import Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.request import REQUEST_ID, TRACE

HEADS_COUNT_MAX: Final = 256
REPLACE_INTERVAL: Final = 32  # in a full cache, one new head in 32 replaces an old one
HEAD_SIZE_MAX: Final = 1_024  # bytes
MEMBER_COUNT_MAX: Final = 24  # members that a head adds to the environ; bounds the memory of a head to 6 kB
_REQUEST_MEMBERS: Final = frozenset({REQUEST_ID, TRACE})  # they belong to one request


class CachedHead(NamedTuple):
    """The meaning of a head."""

    members: WSGIEnvironment  # what it adds to the environ of its connection
    body_size: int  # bytes; 0 without a body


class HeadCache:
    """The cached heads of one worker."""

    def __init__(self) -> None:
        self._heads: dict[bytes, CachedHead] = {}
        self._asked_count = 0  # while the cache is full, modulo REPLACE_INTERVAL
        #: get(head) returns the CachedHead of these bytes, or None. PERF: the dictionary's own method, one call less.
        self.get = self._heads.get

    def __len__(self) -> int:
        return len(self._heads)

    def snapshot(self) -> dict[bytes, CachedHead]:
        """Return a copy of the cache, with the head that will be replaced next as its first key."""
        return self._heads.copy()

    def admits_new(self) -> bool:
        """Return whether the head that was just parsed may be added. To be called once for each such head."""
        if len(self._heads) < HEADS_COUNT_MAX:
            return True
        self._asked_count = (self._asked_count + 1) % REPLACE_INTERVAL
        return self._asked_count == 0

    def add(
        self, head: bytes, environ: WSGIEnvironment, base: WSGIEnvironment, request: Iterable[bytes], body_size: int
    ) -> None:
        """Add `head`, unless it is too large or differs from the canonical form of `request`.

        `request` is the parsed method, target and field lines. `environ` is the request's, made from `base`, which is
        its connection's. `body_size` is in bytes.
        """
        if len(head) > HEAD_SIZE_MAX or len(environ) - len(base) > MEMBER_COUNT_MAX:
            return
        if b"%s %s HTTP/1.1\r\n%s\r\n" % (*request,) != head:
            return
        if len(self._heads) == HEADS_COUNT_MAX:
            del self._heads[next(iter(self._heads))]  # the oldest one
        members = {
            key: value for key, value in environ.items() if base.get(key) is not value and key not in _REQUEST_MEMBERS
        }
        self._heads[head] = CachedHead(members, body_size)
