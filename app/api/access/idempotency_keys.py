"""Idempotency keys: what makes an event safe to send again.

A client that got no answer cannot know whether its event was decided. With an `Idempotency-Key` it may send the
same request again, to any worker: the receipt of the first decision is published with it, by the same store, so the
retry gets the first answer, also when whoever decided died before answering. In a batch each event has its own receipt.

A key belongs to the client (its API key) that sent it, and to one request: the same key with anything else is refused,
whatever differs, body, media type, moral value or route. Only keyed hashes are stored. The block keeps the newest
`idempotency_capacity` receipts; a request that was refused leaves none.
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
    "Makes the request safe to send again: a retry gets the first answer.",
)


class IdempotencyKeys:
    """Makes the block's keys of a client's. `secret` is 16 bytes, the same in every worker."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def key_of(self, environ: WSGIEnvironment, body: bytes) -> IdempotencyHash:
        """Return the key that a request comes with, NO_IDEMPOTENCY_HASH when it has none.

        Raises the Problem with it."""
        given = environ.get("HTTP_IDEMPOTENCY_KEY")
        if given is None:
            return NO_IDEMPOTENCY_HASH
        if not _KEY.fullmatch(given):
            limit = IDEMPOTENCY_KEY_LENGTH
            expected = f"1 to {limit.value} visible ASCII characters without blanks and quotes"
            wrong = f"has {len(given)} characters" if len(given) > limit.value or not given else "is no word"
            raise Problem(
                limit.status, limit.code, f"Idempotency-Key: {wrong}; expected {expected}",
                field="Idempotency-Key", expected=expected,
            )  # fmt: skip
        word = given.strip('"')
        client: Client = environ[CLIENT]
        owner = "" if client.is_address else client.id
        named = blake2b(f"{owner}\0{word}".encode(), digest_size=16, key=self._secret).digest()
        sent = blake2b(body, digest_size=8, key=self._secret)
        media = environ.get("CONTENT_TYPE", "")
        moral = environ.get("HTTP_MORAL_VALUE", "") if media.lower().startswith(RAW) else ""  # elsewhere it is ignored
        for part in (environ["PATH_INFO"], media, moral):
            sent.update(b"\0" + part.encode("latin-1"))
        return new_idempotency_hash(
            (int.from_bytes(named[:8], "little"), int.from_bytes(named[8:], "little")),
            int.from_bytes(sent.digest(), "little"),
        )
