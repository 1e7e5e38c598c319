"""Faults: every refused body says which field is wrong, what is wrong with it and what was expected."""

import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from app.api.codec.event_codec import EventReader
from app.api.codec.faults import find_fault
from app.api.codec.vector_codec import VectorCodec
from app.api.problem import Problem
from testing.bodies import EXAMPLE, JSON, MSGPACK, RAW, floats, of_json, of_msgpack, of_raw, problem
from testing.live_server import LiveServer

READ: Final = EventReader(VectorCodec(2), 64).read
UNIT: Final = "a number from 0 to 1"
VECTOR: Final = "2 finite numbers, or the base64 of 2 little-endian float32"
BYTES: Final = "8 bytes: 2 little-endian float32"
REST: Final = "the rest of it"
pack = msgspec.msgpack.encode
# Members of an event in msgpack.
V: Final = pack("event_vector") + pack([0.5, 1.0])
M: Final = pack("moral_value") + pack(0.5)
P: Final = pack("payload")


def event(vector: str = "[0.5,1]", moral: str = "0.5", payload: str = "") -> bytes:
    """Return the JSON text of an event, with members spelled out."""
    return f'{{"event_vector":{vector},"moral_value":{moral}{payload and f""","payload":{payload}"""}}}'.encode()


# body, code, the sentence up to `; expected`, expected
OF_JSON: Final[list[tuple[bytes, str, str, str]]] = [
    # the whole
    (b"", "malformed_body", "body: is empty", "JSON"),
    (b" \n", "malformed_body", "body: is empty", "JSON"),
    (b"\xef\xbb\xbf" + event(), "malformed_body", "body: begins with a byte order mark",
     "JSON in UTF-8 without a byte order mark"),
    (event().decode().encode("utf-16"), "malformed_body", "body: is UTF-16 or UTF-32", "JSON in UTF-8"),
    (b"\x1f\x8b\x08\0", "malformed_body", "body: is compressed with gzip",
     "the field Content-Encoding: gzip, or JSON that is not compressed"),
    (b"hello", "malformed_body", "body: has 'h' at byte 0 of the body", "a JSON value there"),
    ("é".encode(), "malformed_body", "body: has 'é' at byte 0 of the body", "a JSON value there"),
    (b"\x82", "malformed_body", "body: has the byte 0x82 at byte 0 of the body", "a JSON value there"),
    (b"{'a':1}", "malformed_body", 'body: has "\'" at byte 1 of the body',
     "the name of a member there, in double quotes"),
    (b'{"moral_value" 1}', "malformed_body", "moral_value: has '1' at byte 15 of the body", "a colon after the name"),
    (b'{"moral_value":1 "payload":2}', "malformed_body", "moral_value: has '\"' at byte 17 of the body",
     "a comma or the closing bracket"),
    (event()[:-1] + b",}", "malformed_body", "body: has '}' at byte 42 of the body",
     "the name of a member there, in double quotes"),
    (event() + b"x", "malformed_body", "body: has 'x' at byte 42 of the body", "nothing after the value"),
    (event()[:-1], "malformed_body", "moral_value: ends too early, at byte 41 of the body", REST),
    (b'{"event_vector":[1', "malformed_body", "event_vector[0]: ends too early, at byte 18 of the body", REST),
    (b'{"event_vector":[1,', "malformed_body", "event_vector[1]: ends too early, at byte 19 of the body", REST),
    (b"[]", "field_invalid", "body: is an array, not an object", "an object"),
    (b"5", "field_invalid", "body: is a whole number, not an object", "an object"),
    (b'{"moral_value":1}', "field_missing", "event_vector: is missing",
     "an array of numbers, or base64 of little-endian float32"),
    (b'{"event_vector":[0.5,1]}', "field_missing", "moral_value: is missing", UNIT),
    (event()[:-1] + b',"moral":1}', "field_unknown", "moral: is unknown",
     "one of event_vector, moral_value, payload"),
    (b'{"' + b"x" * 99 + b'":1}', "field_unknown", "x" * 40 + ": is unknown",
     "one of event_vector, moral_value, payload"),
    (event()[:-1] + b',"moral_value":1}', "field_repeated", "moral_value: is named more than once",
     "each member once"),
    (b'{"a\xff":1}', "malformed_body", "body: has the byte 0xff at byte 3 of the body, which is not UTF-8", "UTF-8"),
    (b'{"\\ud83d":1}', "field_invalid", "body: has half of a surrogate pair, \\ud83d, at byte 2 of the body",
     "both halves, or the character itself"),
    # the moral value
    (event(moral='"0.5"'), "field_invalid", "moral_value: is a string, not a number", UNIT),
    (event(moral="true"), "field_invalid", "moral_value: is true or false, not a number", UNIT),
    (event(moral="null"), "field_invalid", "moral_value: is null, not a number", UNIT),
    (event(moral="[1]"), "field_invalid", "moral_value: is an array, not a number", UNIT),
    (event(moral="NaN"), "malformed_body", "moral_value: is NaN, which JSON cannot express", "a finite number"),
    (event(moral="-Infinity"), "malformed_body", "moral_value: is -Infinity, which JSON cannot express",
     "a finite number"),
    (event(moral="1e999"), "field_invalid", "moral_value: is a number beyond float64", UNIT),
    (event(moral="1.5"), "moral_value_out_of_range", "moral_value: is 1.5", UNIT),
    (event(moral=".5"), "malformed_body", "moral_value: has '.' at byte 38 of the body", "a JSON value there"),
    *[
        (event(moral=moral), "malformed_body", f"moral_value: begins with {begins}, which is no JSON number",
         "a number without a plus sign or leading zeros, with a digit on both sides of a point")
        for moral, begins in (("00.5", "00"), ("1.", "1."), ("1e", "1e"), ("1e+", "1e+"), ("-", "'-'"), ("-a", "'-'"))
    ],
    # the vector
    (event("[NaN,0]"), "malformed_body", "event_vector[0]: is NaN, which JSON cannot express", "a finite number"),
    (event("[0,-Infinity]"), "malformed_body", "event_vector[1]: is -Infinity, which JSON cannot express",
     "a finite number"),
    (event('[0,"1"]'), "vector_invalid", "event_vector[1]: is a string, not a number", VECTOR),
    (event("[0,null]"), "vector_invalid", "event_vector[1]: is null, not a number", VECTOR),
    (event("[0,1e999]"), "vector_invalid", "event_vector[1]: is a number beyond float64", VECTOR),
    (event("[0,01]"), "malformed_body", "event_vector[1]: begins with 01, which is no JSON number",
     "a number without a plus sign or leading zeros, with a digit on both sides of a point"),
    (event("[0]"), "dimension_mismatch", "event_vector: has 1 elements", "2 elements"),
    (event("[0,1,2]"), "dimension_mismatch", "event_vector: has 3 elements", "2 elements"),
    (event("{}"), "vector_invalid", "event_vector: is neither an array nor a string", VECTOR),
    (event('"?"'), "vector_invalid", "event_vector: is not base64", VECTOR),
    (event('"AAAA"'), "dimension_mismatch", "event_vector: has 3 bytes", BYTES),
    # the payload
    (event(payload="Infinity"), "malformed_body", "payload: is Infinity, which JSON cannot express",
     "a finite number"),
    (event(payload='{"a":[1,NaN]}'), "malformed_body", "payload.a[1]: is NaN, which JSON cannot express",
     "a finite number"),
    (event(payload='"\x01"'), "malformed_body",
     "payload: has the byte 0x01 at byte 53 of the body", "control characters to be escaped"),
    (event(payload='"\\q"'), "malformed_body", "payload: has the escape \\q at byte 53 of the body",
     r"one of \" \\ \/ \b \f \n \r \t and \u with four hexadecimal digits"),
    (event(payload="tru"), "malformed_body", "payload: has 't' at byte 52 of the body", "a JSON value there"),
    (event(payload='"\\ud83d"'), "payload_invalid",
     "payload: has half of a surrogate pair, \\ud83d, at byte 53 of the body",
     "both halves, or the character itself"),
    (event(payload='"?"').replace(b"?", b"\xff"), "malformed_body",
     "payload: has the byte 0xff at byte 1 of the payload, which is not UTF-8", "UTF-8"),
    (event(payload="[" * 2000 + "]" * 2000), "payload_invalid", "payload: is nested too deeply",
     "at most 60 levels"),
    (event(payload="[" * 61 + "]" * 61), "payload_invalid", "payload[0][0]: is nested too deeply",
     "at most 60 levels"),
    (event(vector="[" * 2000 + "]" * 2000), "field_invalid", "event_vector: is nested too deeply",
     "at most 60 levels"),
]  # fmt: skip

OF_MSGPACK: Final[list[tuple[bytes, str, str, str]]] = [
    (b"", "malformed_body", "body: is empty", "msgpack"),
    (b"\xc1", "malformed_body", "body: has the byte 0xc1 at byte 0 of the body, which msgpack never uses", "msgpack"),
    (event(), "field_invalid", "body: is JSON, not msgpack", f"msgpack, or Content-Type {JSON}"),
    (b"\x82" + V, "malformed_body", "body: ends too early, at byte 33 of the body", REST),
    (b"\x82" + V + M + b"\0", "malformed_body", "body: has the byte 0x00 at byte 54 of the body",
     "nothing after the value"),
    (b"\x82" + V + M[:-1], "malformed_body", "moral_value: ends too early, at byte 53 of the body", REST),
    (b"\x83" + V + M + P + b"\xa1\xff", "malformed_body",
     "payload: has the byte 0xff at byte 1 of the payload, which is not UTF-8", "UTF-8"),
    (b"\x83" + V + M + b"\xa1\xff\0", "malformed_body",
     "body: has the byte 0xff at byte 55 of the body, which is not UTF-8", "UTF-8"),
    (b"\x83" + V + M + P + b"\x91" * 2000, "payload_invalid", "payload: is nested too deeply", "at most 60 levels"),
    (b"\x81\x01\x02", "field_invalid", "body: has a key that is a whole number, not a string", "an object"),
    (b"\x83" + V + M + M, "field_repeated", "moral_value: is named more than once", "each member once"),
    (b"\x90", "field_invalid", "body: is an array, not an object", "an object"),
    (b"\x82" + V + pack("moral_value") + b"\xc4\x01x", "field_invalid", "moral_value: is a bin, not a number", UNIT),
    (b"\x82" + V + pack("moral_value") + b"\xd4\x05x", "field_invalid",
     "moral_value: is an extension type, not a number", UNIT),
    (b"\x82" + V + pack("moral_value") + pack(float("nan")), "moral_value_out_of_range", "moral_value: is nan", UNIT),
    (b"\x82" + M + pack("event_vector") + pack([1, "x"]), "vector_invalid",
     "event_vector[1]: is a string, not a number", VECTOR),
    (b"\x82" + M + pack("event_vector") + pack("?"), "vector_invalid", "event_vector: is not base64", VECTOR),
    (b"\x82" + M + pack("event_vector") + pack(7), "vector_invalid",
     "event_vector: is a whole number, not a bin", VECTOR),
    (b"\x82" + M + pack("event_vector") + pack(b"abc"), "dimension_mismatch", "event_vector: has 3 bytes", BYTES),
    (b"\x83" + V + M + P + pack({"a": b""}), "payload_invalid",
     "payload.a: is a bin, which JSON cannot express", "a str, such as base64"),
]  # fmt: skip

OF_RAW: Final[list[tuple[str | None, str, str, str]]] = [
    (None, "field_missing", "Moral-Value: the header is missing", UNIT),
    ("", "field_invalid", "Moral-Value: is ''", f"{UNIT} in decimal notation"),
    ("nan", "field_invalid", "Moral-Value: is 'nan'", f"{UNIT} in decimal notation"),
    ("1,5", "field_invalid", "Moral-Value: is '1,5'", f"{UNIT} in decimal notation"),
    ("1.5", "moral_value_out_of_range", "Moral-Value: is 1.5", UNIT),
]


def cases() -> Iterator[Any]:
    """Yield every bad input as a test of its own."""
    for media, rows in ((JSON, OF_JSON), (MSGPACK, OF_MSGPACK)):
        for body, *expected in rows:
            yield pytest.param({"CONTENT_TYPE": media}, body, *expected, id=f"{media[12:]} {expected[1][:50]}")
    for moral, *expected in OF_RAW:
        header = {} if moral is None else {"HTTP_MORAL_VALUE": moral}
        yield pytest.param({"CONTENT_TYPE": RAW, **header}, bytes(8), *expected, id=f"raw {expected[1]}")


@pytest.mark.parametrize(("environ", "body", "code", "sentence", "expected"), list(cases()))
def test_a_refused_body_names_field_cause_and_expectation(
    environ: dict[str, Any], body: bytes, code: str, sentence: str, expected: str
) -> None:
    """Not where a parser stopped, but what is wrong."""
    with pytest.raises(Problem) as refusal:
        READ(environ, body)

    found = refusal.value
    assert (found.problem_code, found.description) == (code, f"{sentence}; expected {expected}")
    assert (found.field, found.expected) == (sentence.partition(": ")[0], expected)
    assert found.status_code == (400 if code == "malformed_body" else 422)


@pytest.mark.parametrize("media", [JSON, MSGPACK])
def test_a_sound_body_has_no_fault(media: str) -> None:
    """Vectors as bin and NaN in them are found by others."""
    document = {"event_vector": base64.b64encode(floats([1, 2])).decode(), "payload": [1, {"a": None}]}
    odd = {"x": b"", "y": float("nan"), "z": {1: 2}}
    body = json.dumps(document).encode() if media == JSON else pack(document | odd)

    assert find_fault(body, media) is None


@pytest.mark.parametrize(
    ("member", "value", "sentence"),
    [
        ("top_k", "5", "is a string, not a whole number"),
        ("top_k", 5.0, "has a fraction or an exponent"),
        ("top_k", 0, "is below 1"),
        ("top_k", 101, "is above 100"),
        ("top_k", 10**30, "is above 100"),
        ("top_k", None, "is null, not a whole number"),
        ("phase", "nap", "is 'nap'"),
        ("phase", 5, "is a whole number, not a string"),
        ("include", "payload", "is a string, not an array"),
    ],
)
def test_a_refused_option_names_its_cause(still_server: LiveServer, member: str, value: Any, sentence: str) -> None:
    """Type and range are two things."""
    body = of_json({"vector": EXAMPLE, member: value})

    document = problem(still_server.request("POST", "/recall", body.content, body.headers))

    assert document["detail"] == f"{member}: {sentence}; expected {document['expected']}"
    assert document["code"] == ("top_k_out_of_range" if member == "top_k" else "field_invalid")


def test_the_path_leads_into_a_batch(still_server: LiveServer) -> None:
    """The item, the member, and the place in it; in JSON and in msgpack."""
    good = {"event_vector": EXAMPLE, "moral_value": 0.5}
    text = json.dumps([good, {**good, "payload": {"a": [0, 1e300]}}])
    nan = [good, {**good, "payload": {"a": [0, np.nan]}}]

    for body, field in (
        (of_json(text.replace("1e+300", "NaN").encode()), "[1].payload.a[1]"),
        (of_json(text.replace("1e+300", "1e400").encode()), "[1].payload.a[1]"),
        (of_json(text.replace('"payload"', '"moral_value":1,"payload"').encode()), "[1].moral_value"),
        (of_json(text[:-3].encode()), "[1].payload.a"),
        (of_msgpack(nan), "[1].payload.a[1]"),
        (of_raw(bytes(20)), "body"),
    ):
        document = problem(still_server.request("POST", "/events", body.content, body.headers))
        assert document["field"] == field
        assert document["detail"].startswith(f"{field}: ")
        assert document["detail"].endswith(f"; expected {document['expected']}")
