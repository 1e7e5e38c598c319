"""Payload codec: one compact form for every spelling, and a refusal for what some reader could not read back."""

import itertools
import json
import math
import random
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.codec.media_types import JSON, MSGPACK
from app.api.codec.payload_codec import PayloadCodec
from app.api.problem import Problem
from testing.compact_json import compact

SIZE_MAX: Final = 1024
CODEC: Final = PayloadCodec(SIZE_MAX)
pack = msgspec.msgpack.encode
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=16),
    max_leaves=12,
)


def decode(text: bytes, media: str = JSON) -> bytes:
    return CODEC.decode(msgspec.Raw(text), media, "payload")


def decoded_or_code(text: bytes, media: str = JSON) -> tuple[bytes, str]:
    """Return (payload, "") or (b"", the code of its refusal)."""
    try:
        return decode(text, media), ""
    except Problem as problem:
        return b"", problem.problem_code


def refusal(text: bytes, media: str = JSON) -> tuple[int, str, str]:
    """Return status, code and sentence of the refusal of a payload."""
    with pytest.raises(Problem) as refused:
        decode(text, media)
    found = refused.value
    assert found.field is not None
    assert str(found.description).startswith(found.field + ": ")
    assert str(found.description).endswith(f"; expected {found.expected}")
    return found.status_code, found.problem_code, str(found.description).partition("; expected ")[0]


# -- one form ----------------------------------------------------------------------------------------------------------


@given(values, st.booleans(), st.sampled_from([None, 0, 3]))
def test_every_spelling_of_a_value_has_one_form(value: Any, ascii_only: bool, indent: int | None) -> None:
    """As JSON with escapes or without, with white space or without, and as msgpack."""
    spelled = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    found, code = decoded_or_code(spelled)
    if code:
        assert (code, len(compact(spelled)) > SIZE_MAX) == ("payload_too_large", True)
        return

    assert found == (compact(spelled) if value is not None else b"")
    assert value is None or msgspec.json.decode(found) == value
    assert msgspec.json.decode(decode(pack(value), MSGPACK) or b"null") == value


@given(values)
def test_what_comes_from_msgpack_is_compact(value: Any) -> None:
    """The form that the encoder writes is the form that a walk would write."""
    found, code = decoded_or_code(pack(value), MSGPACK)

    assert code in {"", "payload_too_large"}
    assert decode(found) == found or not found


@pytest.mark.parametrize("spelled", ['"漢"', r'"\u6f22"', r'"\u6F22"'])
def test_the_size_does_not_depend_on_the_spelling(spelled: str) -> None:
    """A payload of the largest size fits however it is spelled, and one more byte never does."""
    fits = '"' + spelled.strip('"') * 340 + 'xx"'  # 3 × 340 + 4
    spaced = " \n[" + " " * 2000 + '"' + spelled.strip('"') * 340 + '" ] '

    assert len(decode(fits.encode())) == SIZE_MAX
    assert len(decode(spaced.encode())) == SIZE_MAX
    assert len(decode(pack("漢" * 340 + "xx"), MSGPACK)) == SIZE_MAX
    for text, media in ((fits[:-1].encode() + b'x"', JSON), (pack("漢" * 340 + "xxx"), MSGPACK)):
        status, code, sentence = refusal(text, media)
        assert (status, code) == (413, "payload_too_large")
        assert sentence == "payload: 1025 bytes as compact JSON"


@pytest.mark.parametrize("media", [JSON, MSGPACK])
def test_null_is_no_payload(media: str) -> None:
    """Also where no payload fits at all."""
    null = b" null" if media == JSON else b"\xc0"

    assert PayloadCodec(0).decode(msgspec.Raw(null), media, "payload") == b""
    assert PayloadCodec(0).decode(msgspec.Raw(), media, "payload") == b""


# -- what is refused ---------------------------------------------------------------------------------------------------

PIECES: Final = [
    "{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "\\u0041", "\\ud83d", "\\ude00", "\\/", "\\q", "null", "true",
    "0", "-", "1.5", "e-3", "e400", "é", "\0", "\x1f", "9" * 20, '"a"', '"a":', '"\\u0061":', "NaN", "01", "+",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=10))
@example(["[", "]", " "])
@example(['"', "\\ud83d", "\\ude00", '"'])
@example(["{", '"a":', "0", ",", '"\\u0061":', "0", "}"])
def test_json_is_accepted_exactly_if_the_reference_accepts_it(pieces: list[str]) -> None:
    """Any text made of pieces of JSON; what is accepted has the same form."""
    judge("".join(pieces).encode())


def test_mutated_json_is_accepted_exactly_if_the_reference_accepts_it() -> None:
    """Bytes replaced, left out and added; numbers around every bound."""
    rng = random.Random(5)
    base = '{"a":[1,-2.5e+3,"x\\n\\u00e9\\ud83d\\ude00é漢😀"],"b":{"c":null,"d":[true,false,{}]},"e":1E-7} '.encode()
    for _ in range(20_000):
        at, cut = rng.randrange(len(base)), rng.randrange(3)
        patch = rng.choice([rng.randbytes(rng.randrange(3)), base[rng.randrange(80) :][: rng.randrange(12)]])
        judge(base[:at] + patch + base[at + cut :])
    for digits, exponent in itertools.product(
        (
            "1797693134862315", "17976931348623157", "17976931348623158", "1797693134862315807",
            "1797693134862315808", "18",
        ),
        range(285, 310),
    ):  # fmt: skip
        for point in (0, 1, len(digits)):
            judge(f"{digits[:point] or '0'}.{digits[point:] or '0'}e{exponent}".encode())
    largest = 2**1024 - 2**970
    for whole in (largest - 1, largest, largest + 1, 10 * largest, largest // 10):
        judge(f"{whole}.0".encode())
        judge(f"-{whole}e0".encode())
        judge(f"0.{whole}e309".encode())
    for whole in (2**63, 2**64, 10**18, 10**19, 10**20):
        for near in (whole - 1, whole, whole + 1, -whole, -whole - 1, 1 - whole):
            judge(str(near).encode())


def judge(text: bytes) -> None:
    """Assert that codec and reference agree about a text of less than SIZE_MAX bytes."""
    try:
        expected = compact(text)
    except (ValueError, RecursionError):
        expected = None
    found, code = decoded_or_code(text)
    assert code != "payload_too_large"
    assert (found if not code and text else None) == (b"" if expected == b"null" else expected), text


@pytest.mark.parametrize("count", [2, 12, 13, 64, 65, 130])
def test_a_repeated_name_is_found_among_any_number(count: int) -> None:
    """Compared pairwise, sorted, or after more memory was taken; also where one of the two is escaped."""
    names = [f"{number:x}" for number in range(count)]
    random.Random(count).shuffle(names)
    unique = json.dumps(dict.fromkeys(names, 0), separators=(",", ":")).encode()
    last = names[-1]
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in last)
    packed = msgspec.msgpack.encode(dict.fromkeys(names, 0))

    assert decode(unique) == unique
    assert decode(packed, MSGPACK) == unique
    for name in (last, escaped):
        found = refusal(unique[:-1] + f',"{name}":1}}'.encode())
        assert found == (422, "field_repeated", f"payload.{last}: is named more than once")
    pairs = b"".join(pack(name) + b"\0" for name in [*names, last])
    assert refusal(b"\xde" + (count + 1).to_bytes(2) + pairs, MSGPACK)[1:] == (
        "field_repeated", f"payload.{last}: is named more than once",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1" * 309, f"payload: is {'1' * 40}…, a whole number beyond 64 bits"),
        ('{"a":[0,18446744073709551616]}', "payload.a[1]: is 18446744073709551616, a whole number beyond 64 bits"),
        ("-9223372036854775809", "payload: is -9223372036854775809, a whole number beyond 64 bits"),
        ("1e400", "payload: is 1e400, which is beyond float64"),
        ('[{"é":-1e309}]', "payload[0].é: is -1e309, which is beyond float64"),
        ("0." + "1" * 1000, "payload: is a number of 1002 characters"),
        (r'{"a":"x\ud83d"}', r"payload.a: has half of a surrogate pair, \ud83d, at byte 7 of the payload"),
        (r'["\ude00\ud83d"]', r"payload[0]: has half of a surrogate pair, \ude00, at byte 2 of the payload"),
        ('{"a":1,"b":{"c":1,"c":2}}', "payload.b.c: is named more than once"),
        ("[" * 61 + "]" * 61, "payload[0][0]: is nested too deeply"),
        ('{"a":' * 61 + "1" + "}" * 61, "payload.a: is nested too deeply"),
    ],
)
def test_what_some_reader_cannot_read_is_refused(text: str, sentence: str) -> None:
    """With the path to the value and what is wrong with it."""
    status, _, found = refusal(text.encode())

    assert (status, found) == (422, sentence)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": [math.nan]}, "payload.a[0]: is NaN or infinite, which JSON cannot express"),
        ([-math.inf], "payload[0]: is NaN or infinite, which JSON cannot express"),
        ({"a": b"\0\1"}, "payload.a: is a bin, which JSON cannot express"),
        (b"x" * 300, "payload: is a bin, which JSON cannot express"),
        ({"a": msgspec.msgpack.Ext(5, b"x")}, "payload.a: is an extension type, which JSON cannot express"),
        ([msgspec.msgpack.Ext(1, b"xyz")], "payload[0]: is an extension type, which JSON cannot express"),
        ({"a": datetime(2026, 1, 1, tzinfo=UTC)}, "payload.a: is a timestamp, which JSON cannot express"),
        ({"a": {7: 1}}, "payload.a: has a key that is not a str, which JSON cannot express"),
        ({None: 1}, "payload: has a key that is not a str, which JSON cannot express"),
        ({b"a": 1}, "payload: has a key that is not a str, which JSON cannot express"),
    ],
)
def test_msgpack_that_json_cannot_express_is_refused(value: Any, sentence: str) -> None:
    """It would come back as something else: null, text, another key."""
    assert refusal(pack(value), MSGPACK) == (422, "payload_invalid", sentence)


@pytest.mark.parametrize("packed", [b"\xca\x7f\xc0\x00\x00", b"\xca\xff\x80\x00\x00", b"\xcb\x7f\xf0" + bytes(6)])
def test_a_float_of_either_size_must_be_finite(packed: bytes) -> None:
    """NaN and the infinities of float32 and float64; the largest finite ones are accepted."""
    assert refusal(packed, MSGPACK)[0] == 422
    assert decode(b"\xca\x7f\x7f\xff\xff", MSGPACK)
    assert json.loads(decode(b"\xcb\x7f\xef" + b"\xff" * 6, MSGPACK)) == 1.7976931348623157e308


@given(st.binary(max_size=24))
@example(b"\xc7\x00\xff")
@example(b"\xdf\x00\x00\x00\x01\xa1a\x01")
def test_msgpack_that_is_accepted_is_decoded(packed: bytes) -> None:
    """Any bytes: what passes the walk has a JSON form that reads back as the same value."""
    found, code = decoded_or_code(packed, MSGPACK)

    assert code in {"", "malformed_body", "payload_invalid", "field_repeated"}
    if packed and not code:
        assert msgspec.json.decode(found or b"null") == msgspec.msgpack.decode(packed)
