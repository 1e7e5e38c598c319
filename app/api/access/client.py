"""Client: who sent a request, as the gate found out, and where the client's tokens are kept."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from core.access.keys import Key
from shm.store import Bucket


class Account(NamedTuple):
    """The token bucket of a client, and the header lines that describe it."""

    bucket: Bucket
    interval_ns: int  # time in which one token refills
    burst: int  # tokens in a full bucket
    remaining_prefix: str  # the RateLimit line up to the number of tokens that are left
    policy_line: str  # the whole RateLimit-Policy line, with its CRLF


Charge: TypeAlias = tuple[Account, int]  # the account and the tokens that a request has paid


@dataclass(eq=False, slots=True)
class Client:
    """Who sends a request. `id` is the id of its key, or on an open service the address."""

    id: str
    key: Key
    account: Account | None = None
