"""Client: who sent a request, as the gate identified it, and where its tokens are kept."""

import math
from typing import NamedTuple, TypeAlias
from wsgiref.types import WSGIEnvironment

import msgspec

from app.httpd.request import CLIENT
from core.access.keys import Key, Role
from shm.bucket import Bucket


class Account(NamedTuple):
    """The token bucket of a client, and the header lines that describe it."""

    bucket: Bucket
    interval_ns: int  # time in which one token refills
    burst: int  # tokens in a full bucket
    remaining_prefix: str  # the RateLimit line up to the number of remaining tokens
    policy_line: str  # the whole RateLimit-Policy line, with its CRLF
    allowance: str  # burst and rate as a sentence for people


Charge: TypeAlias = tuple[Account, int]  # the account that a request was charged to, and the number of tokens


class Client(msgspec.Struct, eq=False):
    """Who sends a request, what it may do, and at which rate. Made by an authenticator.

    `id` names the client in logs, rate limits and idempotency receipts, so no other authenticator may use the same id.
    Ids of keys consist of letters, digits, `_` and `-`; give other ids a prefix with a colon, such as `user:ann`.

    `cached_until` (Unix seconds) lets the gate reuse this object for requests with the same credentials. The cache
    compares the fields Authorization and X-API-Key and nothing else, so leave it at its default for a client that was
    identified by anything else, such as a cookie. An authenticator that keeps the object may lower `cached_until` at
    any time; the next request is then authenticated again.
    """

    id: str
    role: Role
    tier: str  # a name in the rate-limit tiers of the configuration
    cached_until: float = -math.inf
    is_address: bool = False  # the client of an open server: `id` is its address
    account: Account | None = None  # set by the quotas at the client's first charge

    @classmethod
    def of_key(cls, key: Key) -> "Client":
        """Return the client of an API key, cached until the key expires."""
        return cls(key.id, key.role, key.tier, key.expires)


def client_of(environ: WSGIEnvironment) -> Client:
    """Return the client whose request the gate has admitted. Raises KeyError for an open operation."""
    client: Client = environ[CLIENT]
    return client
