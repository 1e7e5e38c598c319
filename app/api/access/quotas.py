"""Quotas: rate limits of clients, over all workers together.

A client is its key, or on an open server its address. Its tier has a rate and a burst; its token bucket is in the
shared block (shm/native/bucket.c). One event or one recall costs one token, a batch of n events costs n.

Invariants: tokens are taken before anything is admitted, and refunded if the request is refused after all; so a refused
request costs nothing, and a request that got a 429 has changed nothing. A request that failed with 500 stays charged,
because its effect is unknown. A request is charged once, for its whole price; otherwise the wait in a 429 would not
suffice. The price of a batch is known when its events are counted, before any vector is decoded. A batch that exceeds
the burst by its size alone (app/api/codec/body_sizes.py) is refused before it is read, so the bytes that a client can
send in vain in one request are bounded by its burst. A bucket belongs to a client, a rate and a burst: a client whose
tier changes starts with a full bucket, because a debt at one rate cannot be compared with one at another rate.

Every charged response states what is left (`RateLimit`, `RateLimit-Policy`; draft-ietf-httpapi-ratelimit-headers).
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
from shm.bucket import KEYS, PEERS, Bucket

_SECOND_NS: Final = 1_000_000_000
_POLICY: Final = "RateLimit-Policy: "


class Quotas:
    """The token buckets of all clients. `clock` returns CLOCK_BOOTTIME in ns."""

    def __init__(self, block: Block, tiers: dict[str, Tier], clock: Callable[[], int]) -> None:
        self._block = block
        self._tiers = {
            name: (round(_SECOND_NS / tier.rate), tier.burst, _policy(name, tier), _allowance(name, tier))
            for name, tier in tiers.items()
        }
        self._clock = clock
        self._secret = block.secret
        self._account_of = lru_cache(4096)(self._account)

    def charge(self, environ: WSGIEnvironment, tokens: int) -> None:
        """Take `tokens`, the whole price of a request, from the client's bucket.

        Raises Problem: 429 if the bucket holds fewer tokens, 422 if it can never hold that many.
        """
        client: Client = environ[CLIENT]
        account = client.account
        if account is None:
            account = client.account = self._account_of(client.id, client.is_address, client.tier)
        bucket, interval_ns, burst, remaining_prefix, policy_line, allowance = account
        if tokens > burst:
            raise _above_burst(client, str(tokens), burst)
        full_ns = bucket.spend(self._clock(), tokens)
        wait_ns = 0
        if full_ns < 0:  # nothing was taken; the fill level follows from the wait
            wait_ns = -full_ns
            full_ns = (burst - tokens) * interval_ns + wait_ns
        remaining = burst - -(-full_ns // interval_ns)
        environ[HEADER_LINES] = f"{remaining_prefix}{remaining};t={-(-full_ns // _SECOND_NS)}\r\n{policy_line}"
        if wait_ns:
            seconds = _seconds(wait_ns)
            detail = (
                f"The request costs {_counted(tokens, 'token')}; the bucket has {remaining:,}. {allowance} "
                f"Send it again in {_counted(seconds, 'second')}. Nothing was applied."
            )
            raise Problem(429, "rate_limit_exceeded", detail, retry_after=seconds)
        environ[CHARGE] = account, tokens

    def check_burst(self, environ: WSGIEnvironment, tokens_min: int) -> None:
        """Raise the 422 for a batch that costs at least `tokens_min`, if the client's bucket never holds that many."""
        client: Client = environ[CLIENT]
        _, burst, _, _ = self._tiers[client.tier]
        if tokens_min > burst:
            raise _above_burst(client, f"at least {tokens_min}", burst)

    def _account(self, client_id: str, is_address: bool, tier: str) -> Account:
        interval_ns, burst, policy, allowance = self._tiers[tier]
        owner = self._owner(_network(client_id) if is_address else client_id, interval_ns, burst)
        bucket = Bucket(self._block, PEERS if is_address else KEYS, owner, interval_ns, burst)
        return Account(bucket, interval_ns, burst, f'RateLimit: "{tier}";r=', policy, allowance)

    def _owner(self, name: str, *bucket: int) -> int:
        """Return the owner of a bucket: 64 bits of a keyed hash, so that no client can choose a name that shares a
        bucket with another client.
        """
        return int.from_bytes(blake2b(f"{name} {bucket}".encode(), digest_size=8, key=self._secret).digest()) or 1


def refund(environ: WSGIEnvironment, spent: int = 0) -> None:
    """Give a request's tokens back to its client, except `spent` tokens."""
    charge: Charge | None = environ.pop(CHARGE, None)
    if charge is None:
        return
    account, tokens = charge
    if tokens > spent:
        account.bucket.refund(tokens - spent)
        environ[HEADER_LINES] = account.policy_line  # the number of remaining tokens is out of date


def _above_burst(client: Client, found: str, burst: int) -> Problem:
    """Return the 422 for a batch of `found` events, which no bucket of the client's tier can hold."""
    return Problem(
        422, "batch_above_burst", f"body: {found} events; expected at most {burst}, the burst of tier {client.tier}",
        field="body", expected=f"at most {burst} events",
    )  # fmt: skip


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
    """Return the RateLimit-Policy line of a tier: q tokens within w seconds."""
    return f'{_POLICY}"{name}";q={tier.burst};w={_seconds(round(tier.burst / tier.rate * _SECOND_NS))}\r\n'


def _allowance(name: str, tier: Tier) -> str:
    """Return what a tier allows, as a sentence for people."""
    return f"Tier {name} allows bursts of {tier.burst:,} and refills {tier.rate:,g} per second."


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _seconds(nanoseconds: int) -> int:
    """Return whole seconds, rounded up, so that no client retries too early."""
    return -(-nanoseconds // _SECOND_NS)
