"""Body errors: bodies that cannot be decoded are refused with a sentence of this server."""

import msgspec
import pytest

from app.api.codec.body_errors import Members, msgpack_count, refuse_body, refuse_repeats, refuse_repeats_msgpack
from app.api.codec.media_types import JSON
from app.api.problem import Problem


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
        (b'[{"number":"1"}]', 422, "field_invalid", "[0].number",
         "[0].number: is a string, not a number; expected a number"),
        (b'[{"number":1e999}]', 422, "field_invalid", "[0].number",
         "[0].number: is a number beyond float64; expected a number"),
        (b"[7]", 422, "field_invalid", "[0]", "[0]: is a whole number, not an object; expected an object"),
        (b"{}", 422, "field_invalid", "body", "body: is an object, not an array; expected an array"),
        (b"[", 400, "malformed_body", "[0]",
         "[0]: ends too early, at byte 1 of the body; expected the rest of it"),
        (b'[{"\xff":1}]', 400, "malformed_body", "[0]",
         "[0]: has the byte 0xff at byte 3 of the body, which is not UTF-8; expected UTF-8"),
    ],
)  # fmt: skip
def test_a_refused_body_has_a_sentence_of_ours(
    body: bytes, status: int, code: str, field: str, description: str
) -> None:
    """The field by its path, its fault, and what was expected of that member."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as error:
        msgspec.json.decode(body, type=list[Inner])
    with pytest.raises(Problem) as refusal:
        refuse_body(error.value, body, JSON, {"number": "a number"})

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
def test_a_refusal_names_the_path_of_the_value(body: bytes, code: str, field: str, expected: str) -> None:
    """The same name may mean one thing in one object and another in the next."""
    members: Members = {"inner": {"number": "a number", "words": "a list of words"}, "number": "a switch"}

    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(body, type=Outer)
    with pytest.raises(Problem) as refusal:
        refuse_body(error.value, body, JSON, members)

    found = refusal.value
    assert (found.problem_code, found.field, found.expected) == (code, field, expected)


def test_a_repeated_member_is_refused() -> None:
    """One colon for each member."""
    refuse_repeats(b'{"a":1,"b":2}', 2)

    with pytest.raises(Problem) as refusal:
        refuse_repeats(b'{"a":1,"a":2}', 1)
    assert refusal.value.problem_code == "field_repeated"


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_a_repeated_member_shows_in_the_head_of_a_msgpack_map(count: int) -> None:
    """In each of its three forms; what the head says is more than what was found."""
    packed = msgspec.msgpack.encode(dict.fromkeys(range(count)))

    refuse_repeats_msgpack(packed, count)
    refuse_repeats_msgpack(msgspec.Raw(packed), count)
    with pytest.raises(Problem) as refusal:
        refuse_repeats_msgpack(packed, count - 1)
    assert refusal.value.problem_code == "field_repeated"


@pytest.mark.parametrize("packed", [b"", b"\xc0", b"\xa3abc", b"\xc4\x01\x00"])
def test_a_value_that_is_no_container_has_no_elements(packed: bytes) -> None:
    """Nothing, nil, a text, a bin."""
    assert msgpack_count(packed) == 0
