"""API keys: the id, role and rate tier that a token gives its client.

A client sends a token. A `Keyring` holds the digests of the known tokens, never a token, and returns the `Key` that a
token opens. It is built with the configuration (`core.startup.load`) from API_KEY and the keys file, never changes, and
is inherited by fork. Neither a `Key` nor a `Keyring` prints a digest.

A token of the keys file is `ID.SECRET`; its id selects the one key that it can open, so a lookup compares one digest
and not a thousand. API_KEY may be any text, even with dots, so its digest is always compared as well.

Invariants: response times reveal nothing about a secret. For any token, `identify` computes one hash and compares two
digests in constant time; for a missing candidate it compares a digest that no token has. Comparing digests, not tokens,
also hides the length of API_KEY. Ids are not secret; they are in logs.
Rejected: salt and stretching (they protect passwords; `mlsdm key` makes secrets of 256 random bits, and a request has 2
µs for this, not 200 ms); a set of digests without ids (lookup time depends on the digest); comparing with every key in
turn (the cost grows with the file, and the time of the match reveals which key it was).
"""

import enum
import math
import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from core.settings.config import Security
from core.settings.tiers import STANDARD

_TIER: Final = Security().api_key_tier
API_KEY_ID: Final = "API_KEY"  # reserved: logs and limits distinguish keys by their ids
ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Role(enum.IntEnum):
    """The permissions of a key. Each role includes those of the roles below it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


class Key(NamedTuple):
    """One key. `digest` is SHA-256 of the whole token; `expires` in Unix seconds, inf for never."""

    id: str
    role: Role
    tier: str
    digest: bytes
    expires: float

    def __repr__(self) -> str:
        return f"Key(id={self.id!r}, role={self.role.name}, tier={self.tier!r}, expires={self.expires})"


# Compared in place of a missing candidate. No known token has this digest, and the key has expired.
_NO_KEY: Final = Key("", Role.READ, STANDARD, bytes(32), -math.inf)


class Keyring:
    """The keys of this server."""

    __slots__ = ("_api_key", "_by_id")

    def __init__(self, api_key: str | None = None, keys: Iterable[Key] = (), api_key_tier: str = _TIER) -> None:
        """`api_key` gets role write and `api_key_tier`; `keys` are those of the file, whose ids are distinct."""
        keys = tuple(keys)
        self._by_id = {key.id: key for key in keys}
        assert len(self._by_id) == len(keys)
        assert API_KEY_ID not in self._by_id
        self._api_key = _NO_KEY
        if api_key:
            self._api_key = Key(API_KEY_ID, Role.WRITE, api_key_tier, token_digest(api_key), math.inf)

    def identify(self, token: str, now: float) -> Key | None:
        """Return the key that `token` opens at `now` (Unix seconds); None for an unknown token or an expired key.

        PERF: 0.8 µs with a token of 47 characters (minimum of 7 × 100,000 calls), of which encoding and hash are 0.35.
        """
        digest = token_digest(token)
        named = self._by_id.get(token.partition(".")[0], _NO_KEY)
        is_named = compare_digest(digest, named.digest)
        is_api_key = compare_digest(digest, self._api_key.digest)
        if is_named:
            return named if now < named.expires else None
        return self._api_key if is_api_key else None

    @property
    def is_open(self) -> bool:
        """Whether there is no key, not even an expired one: then every client has access."""
        return not len(self)

    def expired(self, now: float) -> list[str]:
        """Return the ids of the keys that have expired at `now` (Unix seconds)."""
        return [key.id for key in self._by_id.values() if key.expires <= now]

    def __len__(self) -> int:
        return len(self._by_id) + (self._api_key is not _NO_KEY)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keyring):
            return NotImplemented
        return (self._api_key, self._by_id) == (other._api_key, other._by_id)

    def __hash__(self) -> int:
        return hash((self._api_key, *sorted(self._by_id)))

    def __repr__(self) -> str:
        return f"Keyring({len(self)} keys)"


def token_digest(token: str) -> bytes:
    """Return the SHA-256 of a token's bytes as they are sent.

    Tokens are visible ASCII (RFC 6750 §2.1). Any other text has a digest too: nothing that a client sends raises.
    """
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
