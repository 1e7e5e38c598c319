"""Keys: who a client is, what it may do, and at which rate.

A client shows a token. A `Keyring` holds the digests of the tokens that are known, never a token, and answers with the
`Key` that a token opens: its id (for logs, limits and counts), its role, its tier. It is made once, by whoever loads
the configuration (`core.startup.load`), of `API_KEY` and of the keys file (`core.access.key_file`), never changes, and
is inherited by fork. Whether a role is enough, and at what rate a tier may ask, is decided elsewhere.

A token of the keys file is `ID.SECRET`, and the id in it names the one key that it can open: so one digest is compared
and not a thousand. `API_KEY` is any text, dots included. Both candidates are always compared.

What a stranger can time says nothing about a secret: whatever the token looks like, `identify` makes one hash and two
comparisons in constant time, with a digest that nothing has in the place of a candidate that is missing. Digests are
compared and never tokens, so that the length of `API_KEY` does not show either. Ids are no secrets; they stand in logs.

SHA-256 alone, without salt and stretching, suits tokens and not passwords: `mlsdm key` makes secrets of 256 random
bits, which nobody guesses, however fast, and a request has 2 µs to spend on this and not 200 ms.

Neither a `Key` nor a `Keyring` shows a digest when it is printed.

Rejected: a set of digests without ids, in which a lookup takes a time that depends on the digest; comparing with every
key in turn, whose cost grows with the file and whose end tells which key it was.
"""

import enum
import math
import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from core.settings.tiers import STANDARD

API_KEY_ID: Final = "API_KEY"  # no key of the file may be called so: logs and limits tell keys apart by their ids
ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Role(enum.IntEnum):
    """What a key may do. Each role may do what those below it may."""

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


# Stands in for a candidate that is missing. No token has this digest, and if one had, it would have expired.
_NOBODY: Final = Key("", Role.READ, STANDARD, bytes(32), -math.inf)


class Keyring:
    """The keys that open this service."""

    __slots__ = ("_api_key", "_by_id")

    def __init__(self, api_key: str | None = None, keys: Iterable[Key] = ()) -> None:
        """Take the API_KEY (role write, tier standard) and the keys of the file, whose ids differ."""
        keys = tuple(keys)
        self._by_id = {key.id: key for key in keys}
        assert len(self._by_id) == len(keys)
        assert API_KEY_ID not in self._by_id
        self._api_key = Key(API_KEY_ID, Role.WRITE, STANDARD, token_digest(api_key), math.inf) if api_key else _NOBODY

    def identify(self, token: str, now: float) -> Key | None:
        """Return the key that `token` opens at `now` (Unix seconds); None when it opens none, or one that has expired.

        PERF: 0.8 µs with a token of 47 characters (minimum of 7 × 100,000 calls), of which encoding and hash are 0.35.
        """
        digest = token_digest(token)
        named = self._by_id.get(token.partition(".")[0], _NOBODY)
        is_named = compare_digest(digest, named.digest)
        is_api_key = compare_digest(digest, self._api_key.digest)
        if is_named:
            return named if now < named.expires else None
        return self._api_key if is_api_key else None

    @property
    def is_open(self) -> bool:
        """Whether there is no key at all, not even one that has expired: then everybody may come in."""
        return not len(self)

    def expired(self, now: float) -> list[str]:
        """Return the ids of the keys that no longer open anything at `now` (Unix seconds)."""
        return [key.id for key in self._by_id.values() if key.expires <= now]

    def __len__(self) -> int:
        return len(self._by_id) + (self._api_key is not _NOBODY)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keyring):
            return NotImplemented
        return (self._api_key, self._by_id) == (other._api_key, other._by_id)

    def __hash__(self) -> int:
        return hash((self._api_key, *sorted(self._by_id)))

    def __repr__(self) -> str:
        return f"Keyring({len(self)} keys)"


def token_digest(token: str) -> bytes:
    """Return the digest by which a token is known: SHA-256 of its bytes as they are sent.

    Tokens are visible ASCII (RFC 6750 §2.1). Any other text has a digest of its own too, so that no two texts share one
    and nothing that a client may send raises.
    """
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
