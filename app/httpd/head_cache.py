"""The heads that were read before, and what they say.

A client that keeps a connection open sends the same head again and again, in front of other content. What a head says
follows from its bytes alone: one that equals a head which was read and accepted says what that one said. So it is
looked up and neither parsed nor checked again: 1 µs of an event instead of 5.

Learned is a head that a connection sent twice in a row, not counting familiar ones between: the heads of clients that
put something new into each (a request id, a trace) would only drive out the others. And only one that is what its parts
make: `add` writes method, target and fields down again in the one canonical way, and takes nothing that differs by a
byte. That keeps everything out that a parser might understand in two ways, and where a head ends is beyond doubt.

Where clients are more than there are places, each head would drive out one that comes before it does again, and each
request pay for a head that nobody meets: so while all places are taken, few heads are learned (`admits_new`).

One store for all connections of a worker, bounded in count and bytes: what belongs to one connection (addresses, the
scheme) and to one request (its id) is no part of it. It holds credentials, as do the connection's own buffers; it is
searched by hash and compared whole, so it tells a stranger no more than the gate's own memory does
(`app.api.access.gate`).
"""

from collections.abc import Iterable
from typing import Final, NamedTuple
from wsgiref.types import WSGIEnvironment

from app.httpd.request import REQUEST_ID, TRACE

HEADS_COUNT_MAX: Final = 256
REPLACE_INTERVAL: Final = 32  # while all places are taken, one of so many heads takes the place of another
HEAD_SIZE_MAX: Final = 1_024  # bytes
MEMBER_COUNT_MAX: Final = 24  # of the environ; with so many at most, such a head takes less than 6 kB
_NAMES: Final = frozenset({REQUEST_ID, TRACE})  # those of one request


class CachedHead(NamedTuple):
    """What a head says: the members that it adds to the environ of its connection, and the bytes of content."""

    members: WSGIEnvironment
    length: int


class HeadCache:
    """The familiar heads of one worker."""

    def __init__(self) -> None:
        self._known: dict[bytes, CachedHead] = {}
        self._refused_count = 0
        self.get = self._known.get

    def admits_new(self) -> bool:
        """Whether the head that is read now may be learned: asked once for each."""
        if len(self._known) < HEADS_COUNT_MAX:
            return True
        self._refused_count = (self._refused_count + 1) % REPLACE_INTERVAL
        return self._refused_count == 0

    def add(
        self, head: bytes, environ: WSGIEnvironment, base: WSGIEnvironment, request: Iterable[bytes], length: int
    ) -> None:
        """Remember what `head` says, unless it is not what `request` makes: method, target and the fields' lines.

        `environ` is what reading it made of `base`, which is its connection's; `length` are the bytes of content.
        """
        if len(head) > HEAD_SIZE_MAX or len(environ) - len(base) > MEMBER_COUNT_MAX:
            return
        if b"%s %s HTTP/1.1\r\n%s\r\n" % (*request,) != head:
            return
        if len(self._known) == HEADS_COUNT_MAX:
            del self._known[next(iter(self._known))]  # the one that was learned first
        members = {key: value for key, value in environ.items() if base.get(key) is not value and key not in _NAMES}
        self._known[head] = CachedHead(members, length)
