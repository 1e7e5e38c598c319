"""The codec alone: what each form becomes, and where msgspec's sentences turn into ours."""

import math
import tracemalloc
from array import array
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.problem import Problem
from app.vector import (
    Codec,
    Members,
    count_of_packed,
    floats_of,
    refuse_body,
    refuse_repeats,
    refuse_repeats_packed,
    refuse_vector,
)
from shm.status import NOT_FINITE, TOO_LONG

CODEC = Codec(4)
VECTORS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4)


def floats(values: list[float]) -> bytes:
    """Return little-endian float32."""
    return np.asarray(values, "<f4").tobytes()


@given(VECTORS)
def test_every_form_of_a_vector_is_the_same_bytes(values: list[float]) -> None:
    """JSON numbers, base64, msgpack numbers, bin, base64 as text, and the bytes themselves."""
    packed, encoded = msgspec.msgpack.encode, msgspec.json.encode
    raw = floats(values)
    text = msgspec.json.decode(encoded(raw))

    forms: list[Any] = [
        CODEC.of_json(msgspec.Raw(encoded(values)), "v"),
        CODEC.of_json(msgspec.Raw(encoded(raw)), "v"),
        CODEC.of_msgpack(msgspec.Raw(packed(values)), "v"),
        CODEC.of_msgpack(msgspec.Raw(packed(raw)), "v"),
        CODEC.of_msgpack(msgspec.Raw(packed(text)), "v"),
        CODEC.of_bytes(raw, "v"),
    ]

    assert [bytes(memoryview(form).cast("B")) for form in forms] == [raw] * 6


@given(VECTORS)
def test_float32_survives_its_decimal_form(values: list[float]) -> None:
    """What a client reads back is the float32 that was stored, bit by bit."""
    stored = floats(values)

    assert floats(msgspec.json.decode(msgspec.json.encode(floats_of(stored)))) == stored


@given(st.floats())
def test_a_float64_is_rounded_as_numpy_rounds_it(number: float) -> None:
    """To the nearest float32; what is too large becomes an infinity, which the native core refuses."""
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.float64(number).astype("<f4").tobytes() * 4

    decoded = bytes(memoryview(CODEC.of_msgpack(msgspec.Raw(msgspec.msgpack.encode([number] * 4)), "v")).cast("B"))

    assert decoded == expected or math.isnan(number)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x94\x01\x02\x03\x04",
        b"\xdc\x00\x04\x01\x02\x03\x04",
        b"\xdd\x00\x00\x00\x04\x01\x02\x03\x04",
        b"\xc4\x10" + floats([1, 2, 3, 4]),
        b"\xc5\x00\x10" + floats([1, 2, 3, 4]),
        b"\xd9\x18AACAPwAAAEAAAEBAAACAQA==",
        b"\xb8AACAPwAAAEAAAEBAAACAQA==",
    ],
)
def test_every_length_of_a_msgpack_header_is_understood(packed: bytes) -> None:
    """Encoders are free to use a longer header than they need."""

    assert bytes(memoryview(CODEC.of_msgpack(msgspec.Raw(packed), "v")).cast("B")) == floats([1, 2, 3, 4])


def test_the_first_element_that_is_not_finite_is_named() -> None:
    """With its value as float32, which is what was too large."""
    with pytest.raises(Problem) as refusal:
        refuse_vector(NOT_FINITE, array("f", [1.0, 1e39, math.nan, 0.0]), "event_vector")

    assert (refusal.value.field, refusal.value.problem_code) == ("event_vector[1]", "not_finite")
    assert "is inf as float32" in str(refusal.value.description)


def test_a_norm_is_told_with_the_digits_that_matter() -> None:
    """One above the limit does not read as the limit."""
    with pytest.raises(Problem) as refusal:
        refuse_vector(TOO_LONG, floats([1_000_001, 0, 0, 0]), "vector")

    assert refusal.value.description == "vector: has norm 1000001; expected a norm of at most 1000000"


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """A body to be refused."""

    number: float
    words: list[str] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """Another, with the first in it."""

    inner: Inner | msgspec.UnsetType = msgspec.UNSET
    number: bool = False


@pytest.mark.parametrize(
    ("body", "status", "code", "field", "description"),
    [
        (b'[{"number":1},{}]', 422, "field_missing", "[1].number", "[1].number: is missing; expected a number"),
        (b'[{"n":1}]', 422, "field_unknown", "[0].n", "[0].n: is unknown; expected one of number"),
        (b'[{"number":"1"}]', 422, "field_invalid", "[0].number", "[0].number: is str, not float; expected a number"),
        (b'[{"number":1e999}]', 422, "field_invalid", "[0].number",
         "[0].number: number out of range; expected a number"),
        (b"[7]", 422, "field_invalid", "[0]", "[0]: is int, not object; expected an object"),
        (b"{}", 422, "field_invalid", "body", "body: is object, not array; expected an array"),
        (b"[", 400, "malformed_body", None, "The body is not JSON: Input data was truncated."),
        (b'[{"\xff":1}]', 400, "malformed_body", None, "The body holds text that is not UTF-8: invalid start byte."),
    ],
)  # fmt: skip
def test_a_body_is_refused_in_our_words(body: bytes, status: int, code: str, field: str, description: str) -> None:
    """The field by its path, its fault, and what was expected of that member."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as error:
        msgspec.json.decode(body, type=list[Inner])
    with pytest.raises(Problem) as refusal:
        refuse_body(error.value, "JSON", {"number": "a number"})

    found = refusal.value
    assert (found.status_code, found.problem_code, found.field, found.description) == (status, code, field, description)


@pytest.mark.parametrize(
    ("body", "code", "field", "expected"),
    [
        (b'{"inner":{"n":1}}', "field_unknown", "inner.n", "one of number, words"),
        (b'{"n":{}}', "field_unknown", "n", "one of inner, number"),
        (b'{"inner":{}}', "field_missing", "inner.number", "a number"),
        (b'{"inner":{"number":"field"}}', "field_invalid", "inner.number", "a number"),
        (b'{"inner":{"number":1,"words":3}}', "field_invalid", "inner.words", "a list of words"),
        (b'{"inner":{"number":1,"words":[3]}}', "field_invalid", "inner.words[0]", "a list of words"),
        (b'{"inner":null}', "field_invalid", "inner", "an object"),
        (b'{"number":3}', "field_invalid", "number", "a switch"),
        (b"3", "field_invalid", "body", "an object"),
    ],
)
def test_a_refusal_knows_its_place_in_the_body(body: bytes, code: str, field: str, expected: str) -> None:
    """The same name may mean one thing in one object and another in the next."""
    members: Members = {"inner": {"number": "a number", "words": "a list of words"}, "number": "a switch"}

    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(body, type=Outer)
    with pytest.raises(Problem) as refusal:
        refuse_body(error.value, "JSON", members)

    found = refusal.value
    assert (found.problem_code, found.field, found.expected) == (code, field, expected)


def test_a_member_that_stands_twice_is_refused() -> None:
    """One colon for each member."""
    refuse_repeats(b'{"a":1,"b":2}', 2)

    with pytest.raises(Problem) as refusal:
        refuse_repeats(b'{"a":1,"a":2}', 1)
    assert refusal.value.problem_code == "field_repeated"


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_the_head_of_a_msgpack_map_tells_a_member_that_stands_twice(count: int) -> None:
    """In each of its three forms; what the head says is more than what was found."""
    packed = msgspec.msgpack.encode(dict.fromkeys(range(count)))

    refuse_repeats_packed(packed, count)
    refuse_repeats_packed(msgspec.Raw(packed), count)
    with pytest.raises(Problem) as refusal:
        refuse_repeats_packed(packed, count - 1)
    assert refusal.value.problem_code == "field_repeated"


@pytest.mark.parametrize("packed", [b"", b"\xc0", b"\xa3abc", b"\xc4\x01\x00"])
def test_what_is_no_container_holds_nothing(packed: bytes) -> None:
    """Nothing, nil, a text, a bin."""
    assert count_of_packed(packed) == 0


@pytest.mark.parametrize(
    "vector",
    [
        b"[" + b"0," * 8_000_000 + b"0]",
        b"[" * 8_000_000,
    ],
    ids=["numbers", "brackets"],
)
def test_too_many_json_elements_are_refused_before_they_become_objects(vector: bytes) -> None:
    """Eight million numbers would take half a gigabyte; their commas are counted instead."""
    tracemalloc.start()

    with pytest.raises((Problem, msgspec.DecodeError, RecursionError)):
        CODEC.of_json(msgspec.Raw(vector), "v")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(vector)


@pytest.mark.parametrize("head", [b"\xdc\xff\xff", b"\xdd\x00\xff\xff\xff"])
def test_too_many_msgpack_elements_are_refused_by_their_head(head: bytes) -> None:
    """The head of an array says how many there are; nothing behind it is decoded."""
    with pytest.raises(Problem) as refused:
        CODEC.of_msgpack(msgspec.Raw(head), "v")

    assert refused.value.problem_code == "dimension_mismatch"
