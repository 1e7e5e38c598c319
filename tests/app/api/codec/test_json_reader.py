"""JSON reader: msgspec accepts what it accepts, with the same bits; and it accepts the usual forms of an event.

Of payloads the reference is `testing.compact_json`.
"""

import base64
import json
import random
import struct
from array import array
from decimal import Decimal
from fractions import Fraction
from math import nextafter
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.codec.json_reader import JsonReader
from testing.compact_json import compact

DIMENSION = 3
VECTOR = [0.25, -1.5, 3e-05]
BASE64 = base64.b64encode(array("f", VECTOR).tobytes()).decode()
NAMES = ("event_vector", "moral_value", "payload")
reader = JsonReader(DIMENSION, 1_000)


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """What msgspec reads."""

    event_vector: list[float] | bytes
    moral_value: float
    payload: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


decode = msgspec.json.Decoder(Event).decode


def peer(body: bytes) -> tuple[float, bytes, bytes]:
    """Return what msgspec and the reference read, as the reader would; raises what they raise."""
    event = decode(body)
    vector = event.event_vector if isinstance(event.event_vector, bytes) else array("f", event.event_vector).tobytes()
    assert len(vector) == 4 * DIMENSION
    payload = compact(bytes(event.payload)) if event.payload else b""
    return event.moral_value, vector, payload if payload != b"null" else b""


def bits(found: tuple[float, Any, bytes]) -> tuple[bytes, bytes, bytes]:
    """Return what was read so that −0.0 and 0.0 differ."""
    return struct.pack("<d", found[0]), bytes(found[1]), found[2]


def body_of(*members: tuple[str, str]) -> bytes:
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members) + "}").encode()


def number_of(text: str) -> float | None:
    found = reader.read_event(body_of(("event_vector", "[0,0,0]"), ("moral_value", text)))
    return found[0] if found else None


# -- what must be read here --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"event_vector": VECTOR, "moral_value": 0.5},
        {"moral_value": 1, "event_vector": BASE64},
        {"event_vector": BASE64, "moral_value": 0, "payload": {"a": ["]", "\\", '"', {}], "b": None, "é": "\x7f"}},
        {"payload": "}", "event_vector": [1, 0, -1], "moral_value": 1e-5},
        {"payload": None, "event_vector": [1, 0, -1], "moral_value": 1},
        {"payload": -1.5e300, "event_vector": [1, 0, -1], "moral_value": 0.123456789012345678},
    ],
)
@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_ordinary_events_are_read(body: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    """In any order, with any white space."""
    text = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode()
    found = reader.read_event(text)

    assert found is not None
    assert bits(peer(text)) == bits(found)


@pytest.mark.parametrize("dimension", range(1, 9))
def test_base64_of_every_length(dimension: int) -> None:
    """Whole groups, one byte left over, and two."""
    vector = random.Random(dimension).randbytes(4 * dimension)
    text = json.dumps(base64.b64encode(vector).decode()).encode()

    assert vector == bytes(JsonReader(dimension).read_vector(text) or b"")
    assert JsonReader(dimension + 1).read_vector(text) is None


# -- what must be left to others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{}", b"[]", b'{"event_vector":[0,0,0]}', b'{"moral_value":0.5}',
        body_of(("event_vector", "[0,0]"), ("moral_value", "0.5")),
        body_of(("event_vector", "[0,0,0,0]"), ("moral_value", "0.5")),
        body_of(("event_vector", "[0,0,0"), ("moral_value", "0.5")),
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "0.5"), ("moral_value", "0.6")),
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "0.5"), ("event_vector", "[0,0,1]")),
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "0.5"), ("payload", "1"), ("payload", "2")),
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "0.5"), ("other", "1")),
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "0.5")) + b"x",
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "0.5")) + b"\0",
        body_of(("event_vector", "[0,0,0]"), ("moral_value", "true")),
        body_of(("event_vector", "[0,null,0]"), ("moral_value", "0.5")),
        body_of(("event_vector", f'"{BASE64[:-1]}"'), ("moral_value", "0.5")),
        body_of(("event_vector", f'"{BASE64}='), ("moral_value", "0.5")),
        body_of(("event_vector", '"' + "." + BASE64[1:] + '"'), ("moral_value", "0.5")),
        body_of(("event_vector", '"' + "\\/" + BASE64[2:] + '"'), ("moral_value", "0.5")),
        *[body_of(("payload", payload), ("event_vector", "[0,0,0]"), ("moral_value", "0.5"))
          for payload in ("1e999", "1" * 309, r'"\ud83d"', '{"a":1,"a":2}', f'"{"x" * 1_000}"', "", "[",
                          "]", "{]", '"', '"\\', "nul", "1 2", "[1,]", '{"a"}', '"\x01"', "\\", "[" * 10_000)],
        body_of(("payload", '"é"'), ("event_vector", "[0,0,0]"), ("moral_value", "1")).replace(b"\xc3\xa9", b"\xff"),
    ],
)  # fmt: skip
def test_everything_else_is_left_alone(body: bytes) -> None:
    """Anything invalid or unusual is left to msgspec."""
    assert reader.read_event(body) is None


@pytest.mark.parametrize(
    "text",
    ["", "-", "+1", "01", "-01", "1.", ".5", "1.e5", "1e", "1e+", "0x1", "1_0", "NaN", "Infinity", "1e1001",
     "1" * 20, "0." + "0" * 1001 + "1", "1e-28", "9" * 17 + "e1", "１"],
)  # fmt: skip
def test_invalid_and_overlong_numbers(text: str) -> None:
    """The reader leaves them to msgspec, which reads those that are valid JSON."""
    assert number_of(text) is None


# -- the same, bit for bit ---------------------------------------------------------------------------------------------


def test_numbers_are_rounded_exactly() -> None:
    """Short ones, long ones, ones with exponents, and those next to the midpoint of two doubles."""
    rng = random.Random(7)
    read = 0
    for _ in range(30_000):
        x = rng.uniform(-1, 1) * 10.0 ** rng.randrange(-9, 9)
        middle = (Fraction(abs(x)) + Fraction(nextafter(abs(x), 1e300))) / 2
        for text in (
            repr(x),
            repr(array("f", [x])[0]),
            f"{x:.{rng.randrange(1, 18)}f}",
            f"{rng.randrange(10 ** rng.randrange(1, 20))}e{rng.randrange(-30, 25)}",
            f"{Decimal(middle.numerator) / Decimal(middle.denominator):.{rng.randrange(14, 19)}e}",
        ):
            found = number_of(text)
            read += found is not None
            assert found is None or struct.pack("<d", float(text)) == struct.pack("<d", found), text
    assert read > 100_000


@given(st.lists(st.sampled_from([
    "{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "\\u0041", "null", "true", "0", "-", "1.5", "e-3", "é", "\0",
    '"event_vector":', '"moral_value":', '"payload":', "[0,0.5,-1]", f'"{BASE64}"', '"event_vector"', '"x":1',
]), max_size=14), st.booleans())  # fmt: skip
@example(['"event_vector":', "[0,0.5,-1]", ",", '"moral_value":', "0", ",", '"payload":', "{", "[", "}", "]"], True)
def test_every_event_that_is_read_msgspec_reads_alike(pieces: list[str], wrapped: bool) -> None:
    """Any text made of the pieces of events: if it is read here, it is read there, and to the same bits."""
    text = "".join(pieces)
    body = ('{"event_vector":[0,0.5,-1],"moral_value":0.5,' + text + "}" if wrapped else text).encode()
    found = reader.read_event(body)

    assert found is None or bits(peer(body)) == bits(found)


@given(st.binary(max_size=3), st.integers(0, 200), st.integers(0, 3), st.sampled_from([0, 1, 2]))
def test_mutated_events_are_read_like_msgspec_or_not_at_all(patch: bytes, at: int, cut: int, which: int) -> None:
    """An event with any few bytes replaced by others."""
    body = [
        body_of(("event_vector", "[0.1, 20e-1,-0.0]"), ("moral_value", "0.75"), ("payload", '{"a":[1,"]\\""]}')),
        body_of(("payload", "[ [],{} ]"), ("moral_value", "1"), ("event_vector", f'"{BASE64}"')),
        b' { "moral_value" : 0.25 , "event_vector" : [ 1 , 2 , 3 ] } ',
    ][which]
    at %= len(body)
    changed = body[:at] + patch + body[at + cut :]
    found = reader.read_event(changed)

    assert found is None or bits(peer(changed)) == bits(found)
