"""Vector codec: what each form decodes to, and the sentences of its refusals."""

import math
import tracemalloc
from array import array
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.codec.vector_codec import VectorCodec, refuse_vector, to_floats
from app.api.problem import Problem
from shm.errors import NOT_FINITE, TOO_LONG

CODEC = VectorCodec(4)
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
    """What a client reads back is the float32 that was stored, bit for bit."""
    stored = floats(values)

    assert floats(msgspec.json.decode(msgspec.json.encode(to_floats(stored)))) == stored


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


def test_a_norm_is_reported_with_nine_digits() -> None:
    """One above the limit does not read as the limit."""
    with pytest.raises(Problem) as refusal:
        refuse_vector(TOO_LONG, floats([1_000_001, 0, 0, 0]), "vector")

    assert refusal.value.description == "vector: has norm 1000001; expected a norm of at most 1000000"


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
