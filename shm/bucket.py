"""Token buckets: what the clients of all workers may spend. Taken and given back without the lock.

`shm/native/bucket.c` has the arithmetic, `shm/native/api.h` the contract. A `now_ns` is CLOCK_BOOTTIME in ns.
"""

from typing import Final

from shm._native import ffi, lib
from shm.block import Block

# The tables of buckets.
KEYS: Final = 0
PEERS: Final = 1


class Bucket:
    """The token bucket of one client, in the table of KEYS or of PEERS. Any thread may use it. Raises nothing."""

    __slots__ = ("_account", "_map")

    def __init__(self, block: Block, table: int, owner: int, interval_ns: int, burst: int) -> None:
        """`owner` has 64 bits, not all 0. One token comes every `interval_ns`, up to `burst` of them."""
        self._map = block.map
        self._account = ffi.new("struct mlsdm_account *", (owner, interval_ns, burst, table))

    def spend(self, now_ns: int, count: int) -> int:
        """Spend `count` tokens or none, 1 ≤ count ≤ burst.

        Returns the time in ns until the bucket is full again. If none were spent, returns the time in ns until `count`
        tokens will be there, as a negative number.
        """
        return lib.mlsdm_tokens_spend(self._map, self._account, now_ns, count)

    def refund(self, count: int) -> None:
        """Give back the tokens of a request that was refused after it had spent them."""
        lib.mlsdm_tokens_refund(self._map, self._account, count)
