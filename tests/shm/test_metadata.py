"""Metadata: what was encoded is decoded, and words are those of the reference."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.reference.filter_words import InvalidMetadata as ReferenceInvalid
from core.reference.filter_words import Word, check_metadata, words_of
from shm.layout import MEMBERS_MAX, VALUES
from shm.metadata import (
    NO_METADATA,
    InvalidMetadata,
    Metadata,
    MetadataEncoder,
    Scalar,
    decode,
    hash_of,
)

ENCODER = MetadataEncoder(hash_of(b"a secret of 16 b"))
names = st.text(max_size=6) | st.sampled_from(["", "a", "metadata.a", "\0", "é", "e\u0301", "n" * 300])
values = (
    st.text(max_size=6)
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 0.0, -0.0, 5, 5.0, "5", True, 1, "s" * 300])
)
metadata = st.dictionaries(names, values, max_size=MEMBERS_MAX)


def spelled(value: Scalar) -> str:
    """Return a value with its type and its sign, which `==` does not compare."""
    return f"{type(value).__name__} {value!r}"


@given(metadata)
def test_what_was_encoded_is_decoded(given: Metadata) -> None:
    """Names in their order, values with their types, and the sign of zero."""
    decoded = decode(ENCODER.encode(given).encoded)
    assert [(name, spelled(value)) for name, value in given.items()] == [
        (name, spelled(value)) for name, value in decoded.items()
    ]


@given(metadata.filter(bool))
def test_words_are_those_of_the_reference(given: Metadata) -> None:
    """By the hash of the name: kind and 64 bits. The byte that finds a member has the top bits of that hash."""
    members = ENCODER.encode(given).members
    kinds, words = members.kinds.members, members.members  # type: ignore[union-attr]  # it has some
    found = {words[i].name: Word(VALUES[kinds[i] & 3], words[i].value) for i in range(len(given))}  # type: ignore[arg-type]  # a kind
    assert words_of(given, ENCODER.hashed) == found
    assert [words[i].name >> 58 for i in range(len(given))] == [kinds[i] >> 2 for i in range(len(given))]
    assert [0] * (MEMBERS_MAX - len(given)) == list(kinds)[len(given) :]


def test_no_members_are_no_bytes() -> None:
    """A memory without metadata costs nothing."""
    assert NO_METADATA == ENCODER.encode({})
    assert decode(b"") == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 2**53 + 1}, "metadata.n is 9007199254740993, an integer must be within ±2^53"),
        ({"n": -(2**53) - 1}, "metadata.n is -9007199254740993, an integer must be within ±2^53"),
        ({"n": math.inf}, "metadata.n is inf, a number must be finite"),
        ({"n": math.nan}, "metadata.n is nan, a number must be finite"),
        ({"n": None}, "metadata.n is neither a string nor a number nor a boolean"),
        ({"n": [1]}, "metadata.n is neither a string nor a number nor a boolean"),
        ({str(i): i for i in range(17)}, "metadata has 17 members, at most 16 are allowed"),
    ],
)
def test_what_cannot_be_stored_exactly_is_refused(given: Any, message: str) -> None:
    """As the reference refuses it, in the same words."""
    with pytest.raises(ReferenceInvalid) as expected:
        check_metadata(given)
    with pytest.raises(InvalidMetadata) as raised:
        ENCODER.encode(given)
    assert [message] * 2 == [str(expected.value), str(raised.value)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"\ud800": 1}, r"metadata.\ud800 has a lone surrogate, which UTF-8 cannot encode"),
        ({"n": "\udfff"}, "metadata.n has a lone surrogate, which UTF-8 cannot encode"),
        ({"n" * 65_536: 1}, "metadata has a name of 65536 bytes, at most 65535 are allowed"),
    ],
)
def test_what_cannot_be_encoded_is_refused(given: Any, message: str) -> None:
    """The message names the member and what was expected."""
    with pytest.raises(InvalidMetadata) as raised:
        ENCODER.encode(given)
    assert message == str(raised.value)


def test_names_with_equal_hashes_are_refused() -> None:
    """A hash stands for a name in the block, so that the names of one memory must have different ones."""
    with pytest.raises(InvalidMetadata, match=r"metadata\.b has the hash of another member's name"):
        MetadataEncoder(lambda _: 7).encode({"a": 1, "b": 2})


@given(metadata.filter(bool), st.data())
def test_bytes_that_are_no_metadata_are_refused(given: Metadata, data: st.DataObject) -> None:
    """A cut within a member raises ValueError and nothing else."""
    octets = ENCODER.encode(given).encoded
    cut = octets[: data.draw(st.integers(0, len(octets) - 1))]
    try:
        decoded = decode(cut)
    except ValueError:
        return
    assert decoded == {name: given[name] for name in decoded}


def test_hashes_depend_on_the_secret() -> None:
    """So that nobody who does not know it can choose strings with equal hashes."""
    assert hash_of(b"one")(b"x") != hash_of(b"other")(b"x")
    assert hash_of(b"one")(b"x") == hash_of(b"one")(b"x")
