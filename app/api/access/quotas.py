"""Quotas: how fast a client may go, in all workers together.

A client is its key, or without keys its address; its tier gives rate and burst; its bucket lies in the block
(shm/native/bucket.c). One event or one recall costs one token, a batch of n events n, anything else nothing. Tokens
are taken before anything is admitted and given back when the request is refused after all, so a refused request costs
nothing, and a request that was told 429 has changed nothing. One that met an error of ours (500) keeps them: nobody
knows what it has done.

What a request costs is charged by the gate, before its body is decoded, so that who has nothing left is refused for the
price of a look. How many events a batch has is known once it is decoded; until then it is charged for as many as its
bytes must hold (app/api/codec/body_sizes.py), and the responder charges for the rest as soon as it can count them,
before it reads their vectors. So the work that can be had for nothing, by what is refused in the end, is bounded by the
client's burst.

Every answer that was paid for says how much is left (`RateLimit`, `RateLimit-Policy`; draft-ietf-httpapi-ratelimit-
headers), so that a client can slow down before it is told to.

A bucket belongs to a client, a rate and a burst: who gets another tier, or whose tier changes, begins with a full one,
because what is owed at one rate means nothing at another.

Of an IPv6 address the first 64 bits count: who has one of them has all of them.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from typing import Final
from wsgiref.types import WSGIEnvironment

from app.api.access.client import Account, Charge, Client
from app.api.problem import Problem
from app.httpd.request import CHARGE, CLIENT, HEADER_LINES
from core.settings.tiers import Tier
from shm.block import Block
from shm.store import KEYS, PEERS, Bucket

_SECOND_NS: Final = 1_000_000_000
_POLICY: Final = "RateLimit-Policy: "


class Quotas:
    """The token buckets of all clients. `clock` returns CLOCK_BOOTTIME in ns."""

    def __init__(self, block: Block, tiers: dict[str, Tier], clock: Callable[[], int]) -> None:
        self._block = block
        self._tiers = {
            name: (round(_SECOND_NS / tier.rate), tier.burst, _policy(name, tier)) for name, tier in tiers.items()
        }
        self._clock = clock
        self._secret = block.secret
        self._account_of = lru_cache(4096)(self._account)

    def charge(self, environ: WSGIEnvironment, tokens: int) -> None:
        """Take `tokens` from the client's bucket, in place of what the request has paid in advance. Raises 429 when
        they are not there, 422 when they never will be.
        """
        least = "" if CHARGE in environ and refund(environ) else "at least "  # in advance it is that many
        client: Client = environ[CLIENT]
        account = client.account
        if account is None:
            account = client.account = self._account_of(client.id, client.is_address, client.tier)
        bucket, interval_ns, burst, left, policy = account
        if tokens > burst:
            raise Problem(
                422, "batch_above_burst",
                f"body: {least}{tokens} events; expected at most {burst}, the burst of tier {client.tier}",
                field="body", expected=f"at most {burst} events",
            )  # fmt: skip
        full_ns = bucket.spend(self._clock(), tokens)
        wait_ns = 0
        if full_ns < 0:  # then nothing was taken, and what is owed follows from the wait
            wait_ns = -full_ns
            full_ns = (burst - tokens) * interval_ns + wait_ns
        remaining = burst - -(-full_ns // interval_ns)
        environ[HEADER_LINES] = f"{left}{remaining};t={-(-full_ns // _SECOND_NS)}\r\n{policy}"
        if wait_ns:
            allowed = policy.removeprefix(_POLICY).rstrip()
            detail = f"{tokens} more would exceed {allowed}; try again in {wait_ns / 1e9:.3g} s. Nothing was applied."
            raise Problem(429, "rate_limit_exceeded", detail, retry_after=_seconds(wait_ns))
        environ[CHARGE] = account, tokens

    def _account(self, client_id: str, is_address: bool, tier: str) -> Account:
        interval_ns, burst, policy = self._tiers[tier]
        owner = self._owner(_network(client_id) if is_address else client_id, interval_ns, burst)
        bucket = Bucket(self._block, PEERS if is_address else KEYS, owner, interval_ns, burst)
        return Account(bucket, interval_ns, burst, f'RateLimit: "{tier}";r=', policy)

    def _owner(self, name: str, *bucket: int) -> int:
        """Return the owner of a bucket: 64 bits of a keyed hash, so that no client can aim at another's bucket."""
        return int.from_bytes(blake2b(f"{name} {bucket}".encode(), digest_size=8, key=self._secret).digest()) or 1


def refund(environ: WSGIEnvironment, spent: int = 0) -> bool:
    """Return what a request has paid, but for `spent` tokens. False when it has paid nothing."""
    charge: Charge | None = environ.pop(CHARGE, None)
    if charge is None:
        return False
    account, tokens = charge
    if tokens > spent:
        account.bucket.refund(tokens - spent)
        environ[HEADER_LINES] = account.policy_line  # what was left is not true any more
    return True


def _network(address: str) -> str:
    """Return what identifies a client without a key: an IPv4 address, or the first 64 bits of an IPv6 address.

    One IPv6 client usually has all addresses of its /64. A peer on a Unix socket has no address: its name stays.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped) if mapped else address if parsed.version == 4 else parsed.packed[:8].hex(":")


def _policy(name: str, tier: Tier) -> str:
    """Return the header line with the policy: q tokens within w seconds."""
    return f'{_POLICY}"{name}";q={tier.burst};w={_seconds(round(tier.burst / tier.rate * _SECOND_NS))}\r\n'


def _seconds(nanoseconds: int) -> int:
    """Return whole seconds, rounded up: nobody should come too early."""
    return -(-nanoseconds // _SECOND_NS)
