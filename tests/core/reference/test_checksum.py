"""The checksum: one sum on every processor, and no change of one word that leaves it as it was."""

import random
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from core.reference.checksum import FACTORS, JOINED, LANES, checksum, finish, join, step
from shm._native import ffi, lib

WORD: Final = 2**64
WIDTHS: Final = (16, 32, 64)  # bytes of a vector: SSE2 and NEON, AVX2, AVX-512
# Each number of words up to three rounds of the lanes, and the sizes of real records: levels of 384 dimensions last.
COUNTS: Final = (*range(3 * LANES + 2), 192, 384, 576)


def native(content: bytes, seed: int, width: int = 16) -> int | None:
    """Return the compiled checksum in vectors of `width` bytes, None if this processor has none."""
    words = ffi.new("uint64_t[]", len(content) // 8)
    ffi.memmove(words, content, len(content))
    found = ffi.new("uint64_t *")
    return int(found[0]) if lib.mlsdm_checksum(width, words, len(content), seed, found) else None


def contents(rng: random.Random, size: int) -> Iterator[bytes]:
    """Yield contents of a size: random, constant, and with only one word or bit set."""
    yield rng.randbytes(size)
    yield bytes(size)
    yield b"\xff" * size
    yield (b"\x00" * 7 + b"\x80") * (size // 8)
    if size:
        at = rng.randrange(size // 8) * 8
        yield bytes(at) + rng.randbytes(8) + bytes(size - at - 8)
        yield (1 << rng.randrange(8 * size)).to_bytes(size, "little")


@pytest.fixture
def rng() -> random.Random:
    """A generator of random numbers; a failing test prints its seed."""
    seed = random.randrange(2**32)
    print(f"random.Random({seed})")
    return random.Random(seed)


@pytest.mark.parametrize("width", WIDTHS)
def test_compiled_checksum_equals_the_reference(rng: random.Random, width: int) -> None:
    """Vectors of every width give the sums of the scalar reference, for every size and any seed."""
    if native(b"", 0, width) is None:
        pytest.skip(f"this processor has no vectors of {width} bytes")
    for count in COUNTS:
        for content in contents(rng, 8 * count):
            for seed in (0, 1, WORD - 1, rng.randrange(WORD)):
                assert checksum(content, seed) == native(content, seed, width)


def test_there_are_always_vectors_of_16_bytes() -> None:
    """Every build has the narrowest vectors; widths that do not exist are refused."""
    assert native(b"", 5) == checksum(b"", 5)
    assert [native(b"", 5, width) for width in (0, 8, 24, 128)] == [None] * 4


def unstep(lane: int, mixed: int) -> int:
    """Return the word that takes `lane` to `mixed`."""
    return (mixed * pow(1 + 2**35, -1, WORD) - (lane ^ lane >> 29)) % WORD


def unstep_lane(mixed: int, word: int) -> int:
    """Return the lane that `word` takes to `mixed`."""
    return unshifted((mixed * pow(1 + 2**35, -1, WORD) - word) % WORD, 29)


def unshifted(mixed: int, shift: int) -> int:
    """Return the x with x ^ x >> shift == mixed."""
    found = mixed
    for _ in range(64 // shift):
        found = mixed ^ found >> shift
    return found


def unfinish(total: int, lanes: list[int], start: int, at: int) -> int:
    """Return what lane `at` has to be for the sum `total`, given the other lanes."""
    odd = FACTORS[0]
    before = unshifted(unshifted(total, 29) * pow(odd, -1, WORD) % WORD, 32)
    others = sum((lane ^ lane >> 29) * FACTORS[i] for i, lane in enumerate(lanes) if i != at)
    return unshifted((before - start - others) * pow(FACTORS[at], -1, WORD) % WORD, 29)


def test_each_operation_is_one_to_one(rng: random.Random) -> None:
    """`step`, `join` and `finish` are inverted in each argument: no two values of it have one result."""
    for _ in range(2000):
        lane, word, start = (rng.randrange(WORD) for _ in range(3))
        lanes = [rng.randrange(WORD) for _ in range(JOINED)]
        assert unstep(lane, step(lane, word)) == word
        assert unstep_lane(step(lane, word), word) == lane
        assert unshifted(unstep(lane, join(lane, word)), 17) == word
        for at in range(JOINED):
            assert unfinish(finish(lanes, start), lanes, start, at) == lanes[at]


def replaced(content: bytes, at: int, word: int) -> bytes:
    """Return `content` with another word at index `at`."""
    return content[: 8 * at] + word.to_bytes(8, "little") + content[8 * at + 8 :]


@pytest.mark.parametrize("count", [1, 5, 7, 8, 13, 31, 48, 72, 79])
def test_change_of_one_word_changes_the_sum(rng: random.Random, count: int) -> None:
    """No other value of a word gives the same sum: of all flips of one bit, and of random and close values."""
    content = rng.randbytes(8 * count)
    expected = native(content, 3)
    for at in range(count):
        word = int.from_bytes(content[8 * at : 8 * at + 8], "little")
        others = {word ^ 1 << bit for bit in range(64)} | {rng.randrange(WORD) for _ in range(100)}
        others |= {(word + distance) % WORD for distance in (-1, 1, 2**32, -(2**32))} | {0, WORD - 1, ~word % WORD}
        for other in others - {word}:
            assert native(replaced(content, at, other), 3) != expected


def test_no_flip_of_two_bits_cancels(rng: random.Random) -> None:
    """Of all pairs of flipped bits in a record of 104 bytes none leaves the sum as it was."""
    content = rng.randbytes(104)
    words = ffi.new("uint64_t[]", 13)
    ffi.memmove(words, content, 104)
    found = ffi.new("uint64_t *")
    expected = checksum(content, 6)
    for first in range(832):
        words[first // 64] ^= 1 << first % 64
        for second in range(first):
            words[second // 64] ^= 1 << second % 64
            lib.mlsdm_checksum(16, words, 104, 6, found)
            words[second // 64] ^= 1 << second % 64
            assert found[0] != expected
        words[first // 64] ^= 1 << first % 64


@pytest.mark.parametrize(
    "moved",
    [
        pytest.param(lambda run: [run[-1], *run[1:-1], run[0]], id="exchanged"),
        pytest.param(lambda run: [*run[1:], run[0]], id="rotated"),
        pytest.param(lambda run: run[::-1], id="reversed"),
    ],
)
def test_words_in_another_order_have_another_sum(
    rng: random.Random, moved: Callable[[list[bytes]], list[bytes]]
) -> None:
    """Words that change places change the sum, wherever they are: in one lane, in two, in the last round."""
    words = [rng.randbytes(8) for _ in range(79)]
    expected = native(b"".join(words), 3)
    for i in range(79):
        for j in range(i + 1, 79):
            assert native(b"".join([*words[:i], *moved(words[i : j + 1]), *words[j + 1 :]]), 3) != expected


def test_sizes_and_seeds_have_different_sums() -> None:
    """Zeros of different lengths, and one content under different seeds, have different sums."""
    sums = {native(bytes(8 * count), seed) for count in range(200) for seed in range(9)}
    assert len(sums) == 200 * 9


def test_no_two_factors_of_the_lanes_are_equal_or_opposite() -> None:
    """Modulo 2^32: otherwise equal flips of the highest bits of two lanes would cancel."""
    low = [factor % 2**32 for factor in FACTORS]
    assert len({*low, *(-factor % 2**32 for factor in low)}) == 2 * JOINED
    assert all(factor % 2 for factor in FACTORS)
