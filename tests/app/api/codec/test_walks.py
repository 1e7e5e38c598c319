"""Walks over JSON and msgpack, fuzzed: they accept what the complete decoders accept, and find faults inside the text.

A text that leads to a fault at a new depth joins the pool from which further texts are made, so the fuzzer gets deep
into both grammars. The same harness in C, under AddressSanitizer and guided by coverage, is for a change of the walks.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import pytest

from app.api.codec._native import ffi, lib
from app.api.codec.faults import NAMES, STRICT, find_fault
from app.api.codec.media_types import JSON, MSGPACK
from core.limits import PAYLOAD_DEPTH
from testing.compact_json import compact

COUNT: Final = 20_000
SIZE_MAX: Final = 400
TOKENS: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b'"', b"\\", b"\\u0041", b"\\ud83d", b"\\ude00", b"\\u00", b"\\/",
    b"null", b"true", b"fals", b"0", b"-", b"1.5", b"e-3", b"E+400", "é€😀".encode(), b"\xed\xa0\x80", b"\0", b"\x1f",
    b"9" * 20, b"18446744073709551615", b"-9223372036854775809", b'"a":', b'"\\u0061":', b"NaN", b"-Infinity", b"01",
    b"1797693134862315807", b"e291", b"\xdf\0\0\0\2", b"\xdd\xff\xff\xff\xff", b"\xdb\0\0\0\1", b"\xc7\1\xff",
    b"\xd6\xff", b"\xcb\x7f\xf0" + bytes(6), b"\xca\x7f\x80\0\0", b"\x82\xa1a", b"\xa1a", b"\x91", b"\x81", b"\xc4\2",
    b"\xc6\0\0\0\1", b"\xd9\1", b"\xda\0\1", b"\xde\0\x0d", b"\xc1",
)  # fmt: skip


def texts(source: random.Random, outcome_of: Callable[[bytes], object]) -> Iterator[bytes]:
    """Yield COUNT texts; one whose outcome is new is a parent of later ones."""
    pool, seen = [b"", *TOKENS], set()
    for _ in range(COUNT):
        text = source.choice(pool)
        for _ in range(source.randrange(1, 6)):
            at, cut = source.randrange(len(text) + 1), source.choice([0, 0, 0, 1, 4])
            other = source.choice(pool)
            patch = source.choice(
                [source.choice(TOKENS), other[source.randrange(len(other) + 1) :], source.randbytes(1)]
            )
            text = (text[:at] + patch + text[at + cut :])[:SIZE_MAX]
        yield text
        outcome = outcome_of(text)
        if outcome not in seen:
            seen.add(outcome)
            pool.append(text)


def outcome_of_json(text: bytes) -> object:
    fault = find_fault(text, JSON, NAMES | STRICT)
    return (fault.kind, fault.field.count("["), fault.field.count(".")) if fault else len(text) // 8


def outcome_of_msgpack(packed: bytes) -> object:
    fault = find_fault(packed, MSGPACK, NAMES | STRICT)
    return (fault.kind, fault.field.count("["), fault.field.count(".")) if fault else len(packed) // 8


def compacted(text: bytes) -> bytes | None:
    """Return the compact form that the walk writes, None if it finds a fault. The output has not one byte to spare."""
    walk, to = ffi.new("struct mlsdm_walk *"), ffi.new("uint8_t[]", len(text))
    if not lib.mlsdm_walk_json(text, len(text), NAMES | STRICT, PAYLOAD_DEPTH.value, to, len(text), walk):
        assert walk.offset + walk.size <= len(text)
        return None
    return bytes(ffi.buffer(to, walk.written))


def reference(text: bytes) -> bytes | None:
    try:
        return compact(text)
    except ValueError:
        return None


def refusal_of(decode: Callable[[bytes], object], text: bytes) -> str:
    """Return why a decoder of msgspec refuses a text, "" if it does not."""
    try:
        decode(text)
    except msgspec.DecodeError as error:
        return str(error)
    except UnicodeDecodeError:
        return "not UTF-8"
    return ""


@pytest.fixture
def source(request: pytest.FixtureRequest) -> random.Random:
    """Return a generator of random numbers, and print the seed for a failing test."""
    seed = random.randrange(2**32)
    print(f"{request.node.name}: random.Random({seed})")
    return random.Random(seed)


def test_the_walk_over_json_agrees_with_complete_decoders(source: random.Random) -> None:
    """With msgspec on what is JSON; with the reference on what is a payload, byte for byte."""
    for text in texts(source, outcome_of_json):
        fault, refusal = find_fault(text, JSON), refusal_of(msgspec.json.decode, text)
        # At a number beyond float64, which is JSON, msgspec ends and says nothing of the rest.
        assert "out of range" in refusal or (fault is None) == (not refusal), (text, refusal)
        assert fault is None or fault.offset + len(fault.token) <= len(text), text
        found = compacted(text)
        assert found == reference(text), text
        assert found is None or compacted(found) == found, text


def test_the_walk_over_msgpack_agrees_with_the_complete_decoder(source: random.Random) -> None:
    """On what is msgpack; and what passes the strict walk has a JSON form that is a payload."""
    for packed in texts(source, outcome_of_msgpack):
        fault, refusal = find_fault(packed, MSGPACK), refusal_of(msgspec.msgpack.decode, packed)
        # At what Python has no value for, which is msgpack all the same, msgspec ends and says nothing of the rest: an
        # array or a map as a key, a timestamp of another size.
        is_silent = "hashable" in refusal or "timestamp" in refusal
        assert is_silent or (fault is None) == (not refusal), (packed, refusal)
        assert fault is None or fault.offset <= len(packed), packed
        if find_fault(packed, MSGPACK, NAMES | STRICT, PAYLOAD_DEPTH.value) is None:
            assert compacted(msgspec.json.encode(msgspec.msgpack.decode(packed))) is not None, packed
