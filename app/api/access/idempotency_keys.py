"""Idempotency keys: make an event safe to send again.

A client that gets no response cannot know whether its event was decided. With an `Idempotency-Key` it may send the same
request again, to any worker, and gets the first decision. In a batch each event has a receipt of its own.

Invariants: the receipt of a decision is published by the same 8-byte store as the decision, so it exists even if the
worker died before it answered. A key belongs to one client, one route and the decoded events (moral values as float64,
vectors as float32, payloads as they are stored). So a retry may have another media type, other white space or rewritten
header fields. With other events or on another route the key is refused. Only keyed hashes are stored. The block keeps
the newest `idempotency_capacity` receipts; a refused request leaves none.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Final
from wsgiref.types import WSGIEnvironment

from msgspec import Meta

from app.api.access.client import Client
from app.api.codec.vector_codec import DoubleBuffer, FloatBuffer
from app.api.operation import Parameter
from app.api.problem import Problem
from app.httpd.request import CLIENT
from core.limits import IDEMPOTENCY_KEY_LENGTH
from shm.records import IdempotencyHash, new_idempotency_hash

# Visible ASCII without quote and backslash, as it is or as a string in quotes (RFC 9651 §3.3.3).
_WORD: Final = rf"[!#-\[\]-~]{{1,{IDEMPOTENCY_KEY_LENGTH.value}}}"
_PATTERN: Final = rf'({_WORD}|"{_WORD}")'
_KEY: Final = re.compile(_PATTERN)
KEY_MEMBER: Final = "HTTP_IDEMPOTENCY_KEY"  # of the environ of a request that has a key
IDEMPOTENCY_KEY: Final = Parameter(
    "Idempotency-Key",
    "header",
    Annotated[str, Meta(pattern=f"^{_PATTERN}$")],
    "Makes the request safe to send again: a retry gets the first decision again.",
)


class IdempotencyKeys:
    """Hashes the keys of clients for the block. `secret`: 16 bytes, the same in all workers."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def hash_of(
        self, environ: WSGIEnvironment, morals: DoubleBuffer, vectors: FloatBuffer, payloads: Sequence[bytes] | None
    ) -> IdempotencyHash:
        """Return the hash of a request that has a key, and of its n events. Raises Problem 400 for an invalid key.

        `morals` float64[n] and `vectors` float32-LE[n, dimension] are contiguous buffers; `payloads` has n items, b""
        for none, or is None.
        """
        word = _parse_key(environ[KEY_MEMBER])
        client: Client = environ[CLIENT]
        owner = "" if client.is_address else client.id
        key_hash = blake2b(f"{owner}\0{word}".encode(), digest_size=16, key=self._secret).digest()
        # "//event" is the same route as "/event". The size of `morals` tells how many vectors follow.
        path = environ["PATH_INFO"].lstrip("/").encode("latin-1")
        request_hash = blake2b(b"%s\0%d\0" % (path, memoryview(morals).nbytes), digest_size=8, key=self._secret)
        request_hash.update(morals)
        request_hash.update(vectors)
        if payloads and any(payloads):
            request_hash.update(b"".join([b"%d:%s" % (len(payload), payload) for payload in payloads]))
        return new_idempotency_hash(
            (int.from_bytes(key_hash[:8], "little"), int.from_bytes(key_hash[8:], "little")),
            int.from_bytes(request_hash.digest(), "little"),
        )


def _parse_key(given: str) -> str:
    """Return a key without its quotes. Raises Problem 400."""
    if not _KEY.fullmatch(given):
        limit = IDEMPOTENCY_KEY_LENGTH
        expected = f"1 to {limit.value} visible ASCII characters without spaces and quotes"
        wrong = f"has {len(given)} characters" if len(given) > limit.value or not given else "is not one word"
        raise Problem(
            limit.status, limit.code, f"Idempotency-Key: {wrong}; expected {expected}",
            field="Idempotency-Key", expected=expected,
        )  # fmt: skip
    return given.strip('"')
