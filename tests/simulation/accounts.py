"""The accounts of the simulated clients, whose tokens are spent.

All of them share the same eight places of their table, `SET`. Six share those of KEYS, where an account is evicted
only when another one has a second place; twelve share those of PEERS, where one always is. Their rates and bursts
differ.
"""

from typing import Final, NamedTuple

from shm.bucket import KEYS, PEERS
from shm.layout import BUCKET_WAYS, KEY_BUCKETS, PEER_BUCKETS

SET: Final = 5
_SETS: Final = {KEYS: KEY_BUCKETS // BUCKET_WAYS, PEERS: PEER_BUCKETS // BUCKET_WAYS}


class Account(NamedTuple):
    """Whose bucket: the arguments of `shm.bucket.Bucket`."""

    table: int
    owner: int
    interval_ns: int
    burst: int


ACCOUNTS: Final = tuple(
    Account(table, SET + _SETS[table] * (1 + i), 10**8 * (1 + 7 * i), 1 + i % 5)
    for table, count in ((KEYS, 6), (PEERS, 12))
    for i in range(count)
)
