"""The checksum of the block's records: shm/native/checksum.c, one lane after the other in whole numbers.

docs/design/checksum.md has the reasons.
"""

from collections.abc import Sequence
from typing import Final

LANES: Final = 24
JOINED: Final = 8
_FACTOR: Final = 0x9E3779B97F4A7C15  # SEAL_FACTOR of block.h
_MASK: Final = 2**64 - 1
FACTORS: Final = tuple(pow(_FACTOR, number, 2**64) for number in range(1, JOINED + 1))


def checksum(content: bytes, seed: int) -> int:
    """Return the checksum, 64 bits, of whole little-endian words of 8 bytes. `seed` has 64 bits."""
    assert len(content) % 8 == 0
    words = [int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), 8)]
    lanes = [number * _FACTOR & _MASK for number in range(1, LANES + 1)]
    whole = len(words) // JOINED * JOINED
    for number, word in enumerate(words[:whole]):
        lanes[number % LANES] = step(lanes[number % LANES], word)
    if whole:
        for lane in range(JOINED):
            other = join(lanes[lane + JOINED], lanes[lane + 2 * JOINED])
            lanes[lane] = join(lanes[lane], other)
    for lane, word in enumerate(words[whole:]):
        lanes[lane] = step(lanes[lane], word)
    return finish(lanes[:JOINED], seed ^ len(content))


def step(lane: int, word: int) -> int:
    """Take a word into a lane. One-to-one in each argument while the other is fixed."""
    mixed = ((lane ^ lane >> 29) + word) & _MASK
    return (mixed + (mixed << 35)) & _MASK


def join(lane: int, other: int) -> int:
    """Take another lane into a lane. One-to-one in each argument while the other is fixed."""
    return step(lane, other ^ other >> 17)


def finish(lanes: Sequence[int], start: int) -> int:
    """Join eight lanes to the sum. One-to-one in each lane and in `start` while the others are fixed."""
    total = start
    for lane, factor in zip(lanes, FACTORS, strict=True):
        total += (lane ^ lane >> 29) * factor
    total &= _MASK
    total = (total ^ total >> 32) * _FACTOR & _MASK
    return total ^ total >> 29
