"""Idempotency keys: make an event safe to send again.

A client without a response cannot know whether its event was decided. With an `Idempotency-Key` it may send the same
request again, to any worker, and gets the first decision. In a batch each event has a receipt of its own.

Invariants: the receipt of a decision is published by the same 8-byte store as the decision, so it exists even if the
worker died before it answered. A key belongs to one client and one request: with another body, media type, moral value
or route it is refused. Only keyed hashes are stored. The block keeps the newest `idempotency_capacity` receipts; a
refused request leaves none.
"""

import re
from hashlib import blake2b
from typing import Annotated, Final
from wsgiref.types import WSGIEnvironment

from msgspec import Meta

from app.api.access.client import Client
from app.api.codec.media_types import RAW
from app.api.operation import Parameter
from app.api.problem import Problem
from app.httpd.request import CLIENT
from core.limits import IDEMPOTENCY_KEY_LENGTH
from shm.records import NO_IDEMPOTENCY_HASH, IdempotencyHash, new_idempotency_hash

# Visible ASCII without quote and backslash, as it is or as a string in quotes (RFC 9651 §3.3.3).
_WORD: Final = rf"[!#-\[\]-~]{{1,{IDEMPOTENCY_KEY_LENGTH.value}}}"
_PATTERN: Final = rf'({_WORD}|"{_WORD}")'
_KEY: Final = re.compile(_PATTERN)
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

    def hash_of(self, environ: WSGIEnvironment, body: bytes) -> IdempotencyHash:
        """Return the hash of a request's key, NO_IDEMPOTENCY_HASH if it has none. Raises Problem 400."""
        given = environ.get("HTTP_IDEMPOTENCY_KEY")
        if given is None:
            return NO_IDEMPOTENCY_HASH
        if not _KEY.fullmatch(given):
            limit = IDEMPOTENCY_KEY_LENGTH
            expected = f"1 to {limit.value} visible ASCII characters without spaces and quotes"
            wrong = f"has {len(given)} characters" if len(given) > limit.value or not given else "is not one word"
            raise Problem(
                limit.status, limit.code, f"Idempotency-Key: {wrong}; expected {expected}",
                field="Idempotency-Key", expected=expected,
            )  # fmt: skip
        word = given.strip('"')
        client: Client = environ[CLIENT]
        owner = "" if client.is_address else client.id
        key_hash = blake2b(f"{owner}\0{word}".encode(), digest_size=16, key=self._secret).digest()
        request_hash = blake2b(body, digest_size=8, key=self._secret)
        media = environ.get("CONTENT_TYPE", "")
        moral = environ.get("HTTP_MORAL_VALUE", "") if media.lower().startswith(RAW) else ""  # else ignored
        for part in (environ["PATH_INFO"], media, moral):
            request_hash.update(b"\0" + part.encode("latin-1"))
        return new_idempotency_hash(
            (int.from_bytes(key_hash[:8], "little"), int.from_bytes(key_hash[8:], "little")),
            int.from_bytes(request_hash.digest(), "little"),
        )
