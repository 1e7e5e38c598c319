"""POST /event and POST /events: every form of a body, its decision, and every refusal."""

import json
import struct
import uuid
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.limits import BATCH_COUNT
from testing.bodies import (
    BATCH_FORMS,
    EVENT_FORMS,
    EXAMPLE,
    Body,
    accepted,
    as_stored,
    floats,
    of_json,
    of_msgpack,
    of_raw,
    pack,
    post,
    problem,
    refused,
    sent,
    text,
)
from testing.live_server import LiveServer

MEMBERS = {
    "accepted", "reason", "sequence", "moral_value", "threshold_before", "moral_filter_threshold", "ema",
    "current_phase", "position", "boot_id", "log_id", "created_at",
}  # fmt: skip
# Values whose shortest decimal form is long, tiny, or signed zero.
AWKWARD = [1 / 3, 1e-45, -0.0, 16777217.0 / 2**40, 2.0**-126, 3.0e5, -1e-7, 0.1]
RAW_EXAMPLE = floats(EXAMPLE)
NAN = float("nan")


def event(**changes: Any) -> dict[str, Any]:
    """Return an event with some members changed; None takes a member out."""
    document = {"event_vector": EXAMPLE, "moral_value": 0.5, **changes}
    return {name: value for name, value in document.items() if value is not None}


def json_with(**members: str) -> Body:
    """Return the JSON text of an event, with members spelled out."""
    spelled = {"event_vector": json.dumps(EXAMPLE), "moral_value": "0.5", **members}
    return of_json(("{" + ",".join(f'"{name}":{value}' for name, value in spelled.items()) + "}").encode())


def twice(name: str) -> Body:
    """Return a msgpack event with one member given a second time, at its end."""
    members = event(payload={"a": 1})
    return of_msgpack(bytes([0x84]) + pack(members)[1:] + pack(name) + pack(members[name]))


def stored(server: LiveServer, memory_id: int) -> dict[str, Any]:
    """Return a memory with its vector."""
    memory: dict[str, Any] = server.get(f"/memories/{memory_id}?include=vector").json
    return memory


# -- what an event is answered with ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", EVENT_FORMS)
def test_every_form_of_an_event_stores_the_same_float32_values(still_server: LiveServer, form: str) -> None:
    """Whatever way a vector comes in, what is stored is its float32 value, and the moral value to the last bit."""
    moral = 0.9 + 0.1 / 3

    decision = sent(still_server, "/event", EVENT_FORMS[form](AWKWARD, moral))

    memory = stored(still_server, decision["memory_id"])
    assert memory["vector"] == as_stored(AWKWARD)
    assert str(memory["vector"][2]) == "-0.0"
    assert decision["moral_value"] == memory["moral_value"] == moral


def test_an_accepted_event_is_answered_with_its_decision_and_its_memory(still_server: LiveServer) -> None:
    """The members are exactly those documented; numbers agree with the state before and after."""
    before = still_server.state()

    decision = accepted(still_server)

    after = still_server.state()
    assert set(decision) == MEMBERS | {"memory_id"}
    assert decision["reason"] == "accepted"
    assert decision["sequence"] == after["total_events_processed"] == before["total_events_processed"] + 1
    assert decision["memory_id"] == after["accepted_events_count"] == before["accepted_events_count"] + 1
    assert decision["threshold_before"] == before["moral_filter_threshold"]
    assert decision["moral_filter_threshold"] == after["moral_filter_threshold"]
    assert decision["ema"] == after["ema"] == 0.1 + (1 - 0.1) * before["ema"]
    assert decision["current_phase"] == before["current_phase"]
    assert decision["position"] == after["position"] == before["position"] + 1
    assert decision["boot_id"] == after["boot_id"]


def test_a_rejected_event_has_a_reason_and_no_memory(still_server: LiveServer) -> None:
    """Below the lowest threshold everything is rejected, counted, and forgotten."""
    before = still_server.state()

    decision = sent(still_server, "/event", of_json(event(moral_value=0.29)))

    after = still_server.state()
    assert set(decision) == MEMBERS
    assert (decision["accepted"], decision["reason"]) == (False, "moral")
    assert after["latent_events_count"] == before["latent_events_count"] + 1
    assert after["memory_used"] == before["memory_used"]


@pytest.mark.parametrize("moral", [0, 1, 0.0, 1.0, 0.1 + 0.2, 1e-300, 5e-324])
def test_moral_values_come_back_to_the_last_bit(still_server: LiveServer, moral: float) -> None:
    """Whole numbers are accepted too, the range includes its bounds, and no digit is lost."""

    assert sent(still_server, "/event", of_json(event(moral_value=moral)))["moral_value"] == moral


@pytest.mark.parametrize("moral", ["1", "1.", "0.25", ".25", "+0.25", "25e-2", "2.5E-1", "0.000", "1e-400"])
def test_the_moral_value_header_takes_any_decimal_notation(still_server: LiveServer, moral: str) -> None:
    """A sign, an exponent, or no digit on one side of the point."""

    decision = sent(still_server, "/event", of_raw(RAW_EXAMPLE, **{"Moral-Value": moral}))

    assert decision["moral_value"] == float(moral)


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON", ""])
def test_media_types_may_have_parameters_and_any_case(still_server: LiveServer, media: str) -> None:
    """RFC 9110 §8.3.1. Without a Content-Type a body is JSON."""
    headers = {"Content-Type": media} if media else {}

    assert post(still_server, "/event", Body(json.dumps(event()).encode(), headers)).status == 200


@pytest.mark.parametrize(
    "payload",
    ["", "text", "ünïcode ✓ \u0000", 0, 1.5, True, False, [], {}, {"a": [1, {"b": None}], "": "x"}, [[[]]], 2**53],
)
def test_payloads_of_every_kind_come_back_as_they_were(still_server: LiveServer, payload: Any) -> None:
    """A payload is any JSON value, whether it came as JSON or as msgpack."""
    by_json = accepted(still_server, payload)
    by_msgpack = sent(still_server, "/event", of_msgpack(event(moral_value=1.0, payload=payload)))

    for decision in (by_json, by_msgpack):
        memory = stored(still_server, decision["memory_id"])
        assert memory["payload"] == payload
        assert type(memory["payload"]) is type(payload)


@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        *[(text, text) for text in ("-1e308", '"1e999"', "1e-999", "-0", "1.10", "18446744073709551615", "-0.0E+00")],
        (' { "a" : [ 1 , 2 ] } ', '{"a":[1,2]}'),
        (r'"\u6f22\u00e9\ud83d\ude00\/\u0041"', '"漢é😀/A"'),
        (r'"\u0000\u001F\n\u000a\"\\\u0022"', r'"\u0000\u001f\n\n\"\\\""'),
    ],
)
def test_a_json_payload_is_kept_in_its_compact_form(still_server: LiveServer, payload: str, kept: str) -> None:
    """Digit for digit; without white space between tokens, and with no escape but the necessary ones."""
    for body in (json_with(moral_value="1", payload=payload), json_with(payload=payload, moral_value="1", x="")):
        content = body.content.replace(b',"x":', b"") + b" " * (body is not None)
        decision = sent(still_server, "/event", of_json(content))
        answer = still_server.get(f"/memories/{decision['memory_id']}")
        assert f'"payload":{kept}}}'.encode() in answer.body


@pytest.mark.parametrize(
    "body",
    [
        json_with(moral_value="1", payload="null"),
        of_msgpack({**event(), "moral_value": 1.0, "payload": None}),
        json_with(moral_value="1"),
    ],
)
def test_null_is_no_payload(still_server: LiveServer, body: Body) -> None:
    """An event without a payload and one with null are the same."""
    decision = sent(still_server, "/event", body)

    assert "payload" not in stored(still_server, decision["memory_id"])


def test_a_payload_of_the_largest_size_is_kept_whole(still_server: LiveServer) -> None:
    """1,024 bytes as JSON: two quotation marks and 1,022 characters."""
    payload = "x" * 1022

    assert stored(still_server, accepted(still_server, payload)["memory_id"])["payload"] == payload


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", BATCH_FORMS)
def test_a_batch_is_decided_item_by_item_in_order(still_server: LiveServer, form: str) -> None:
    """One result for each event, each the decision that it would have got alone, without a gap."""
    before = still_server.state()
    events = [(AWKWARD[i:] + AWKWARD[:i], moral) for i, moral in enumerate((1.0, 0.1, 0.95, 0.3, 0.9))]

    answer = sent(still_server, "/events", BATCH_FORMS[form](events))

    results = answer["results"]
    assert set(answer) == {"results", "accepted", "rejected"}
    assert [set(result) - {"memory_id"} for result in results] == [MEMBERS] * 5
    assert [result["sequence"] - before["total_events_processed"] for result in results] == [1, 2, 3, 4, 5]
    assert [result["position"] - before["position"] for result in results] == [1, 2, 3, 4, 5]
    assert [result["threshold_before"] for result in results[1:]] == [
        result["moral_filter_threshold"] for result in results[:-1]
    ]
    assert [result["moral_value"] for result in results] == [1.0, 0.1, 0.95, 0.3, 0.9]
    taken = [i for i, result in enumerate(results) if result["accepted"]]
    assert {0, 2, 4} <= set(taken)
    assert 1 not in taken
    assert (answer["accepted"], answer["rejected"]) == (len(taken), 5 - len(taken))
    for i in taken:
        assert stored(still_server, results[i]["memory_id"])["vector"] == as_stored(events[i][0])


def test_a_batch_carries_payloads(still_server: LiveServer) -> None:
    """Each event keeps its own, including none."""
    payloads = [{"n": 1}, None, "x" * 1022, None, ""]
    batch = [event(moral_value=1.0, payload=payload) for payload in payloads]

    for body in (of_json(batch), of_msgpack(batch)):
        results = sent(still_server, "/events", body)["results"]
        kept = [stored(still_server, result["memory_id"]).get("payload") for result in results]
        assert kept == payloads


def test_the_longest_batch_is_taken(still_server: LiveServer) -> None:
    """1,000 events in one request."""
    events = [(EXAMPLE, 0.0)] * BATCH_COUNT.value

    answer = sent(still_server, "/events", BATCH_FORMS["raw"](events))

    assert (len(answer["results"]), answer["rejected"]) == (BATCH_COUNT.value, BATCH_COUNT.value)


# -- refusals ----------------------------------------------------------------------------------------------------------
ONE_MORE = pack(event()).replace(b"\x82", b"\x83", 1)  # a map of three, the third still to come

MALFORMED = {
    "nothing": of_json(b""),
    "not json": of_json(b"hello"),
    "truncated json": of_json(b'{"event_vector":[1,2'),
    "something after it": of_json(json.dumps(event()).encode() + b"x"),
    "byte order mark": of_json(b"\xef\xbb\xbf" + json.dumps(event()).encode()),
    "NaN is not json": json_with(moral_value="NaN"),
    "Infinity is not json": json_with(event_vector="[1,2,3,4,5,6,7,-Infinity]"),
    "a leading zero": json_with(moral_value="00.5"),
    "a payload that is not json": json_with(payload='"\\q"'),
    "a control character": json_with(payload='"\x01"'),
    "payload not utf-8": of_json(json_with(payload='"?"').content.replace(b"?", b"\xff")),
    "member name not utf-8": of_json(b'{"\xff":1}'),
    "no msgpack": of_msgpack(b""),
    "reserved opcode": of_msgpack(b"\xc1"),
    "truncated msgpack": of_msgpack(pack(event())[:-1]),
    "something after msgpack": of_msgpack(pack(event()) + b"\x00"),
    "msgpack text not utf-8": of_msgpack(ONE_MORE + b"\xa7payload\xa1\xff"),
    "msgpack key not utf-8": of_msgpack(ONE_MORE + b"\xa1\xff\x00"),
}  # fmt: skip

INVALID: dict[str, tuple[Body, str, str]] = {
    # the whole
    "an array": (of_json([]), "field_invalid", "body"),
    "null": (of_json(None), "field_invalid", "body"),
    "no vector": (of_json(event(event_vector=None)), "field_missing", "event_vector"),
    "no moral value": (of_json(event(moral_value=None)), "field_missing", "moral_value"),
    "an unknown member": (of_json(event(moral=1)), "field_unknown", "moral"),
    "an unknown member in msgpack": (of_msgpack(event(x=1)), "field_unknown", "x"),
    "a member twice": (of_json(json_with().content[:-1] + b',"moral_value":1}'), "field_repeated", "moral_value"),
    "a payload twice": (
        of_json(b'{"payload":{"a":1},' + json_with(payload="1").content[1:]), "field_repeated", "payload"
    ),
    "a member twice, once escaped": (
        of_json(json_with().content[:-1] + b',"moral_v\\u0061lue":1}'), "field_repeated", "body"
    ),
    # the moral value
    "above one": (of_json(event(moral_value=1.0000000000000002)), "moral_value_out_of_range", "moral_value"),
    "below zero": (of_json(event(moral_value=-5e-324)), "moral_value_out_of_range", "moral_value"),
    "moral NaN": (of_msgpack(event(moral_value=NAN)), "moral_value_out_of_range", "moral_value"),
    "moral infinity": (of_msgpack(event(moral_value=1e400)), "moral_value_out_of_range", "moral_value"),
    "a member twice, msgpack": (twice("moral_value"), "field_repeated", "moral_value"),
    "a payload twice, msgpack": (twice("payload"), "field_repeated", "payload"),
    "a payload of 1e999": (json_with(payload='{"a":[1,-1e999]}'), "payload_invalid", "payload.a[1]"),
    "moral 1e999": (json_with(moral_value="1e999"), "field_invalid", "moral_value"),
    "moral text": (of_json(event(moral_value="0.5")), "field_invalid", "moral_value"),
    "moral true": (of_json(event(moral_value=True)), "field_invalid", "moral_value"),
    "moral null": (json_with(moral_value="null"), "field_invalid", "moral_value"),
    "header missing": (of_raw(RAW_EXAMPLE), "field_missing", "Moral-Value"),
    **{
        f"header {value[:8]!r}": (of_raw(RAW_EXAMPLE, **{"Moral-Value": value}), code, "Moral-Value")
        for code, values in {
            "field_invalid": ("", "abc", "nan", "inf", "0x1", "1_0", "0,5", "0.5 0.5", "e1", ".", "--1"),
            "moral_value_out_of_range": ("1.1", "-0.1", "5e0", "1e400", "9" * 400),
        }.items()
        for value in values
    },
    # the vector
    "too few": (of_json(event(event_vector=EXAMPLE[:-1])), "dimension_mismatch", "event_vector"),
    "too many": (of_msgpack(event(event_vector=[*EXAMPLE, 1.0])), "dimension_mismatch", "event_vector"),
    "none": (of_json(event(event_vector=[])), "dimension_mismatch", "event_vector"),
    "short base64": (of_json(event(event_vector=text(EXAMPLE[:-1]))), "dimension_mismatch", "event_vector"),
    "short bin": (of_msgpack(event(event_vector=RAW_EXAMPLE[:-1])), "dimension_mismatch", "event_vector"),
    "short raw": (of_raw(RAW_EXAMPLE[:-1], **{"Moral-Value": "1"}), "dimension_mismatch", "body"),
    "empty raw": (of_raw(b"", **{"Moral-Value": "1"}), "dimension_mismatch", "body"),
    "not base64": (of_json(event(event_vector="!" * 44)), "vector_invalid", "event_vector"),
    "not base64 in msgpack": (of_msgpack(event(event_vector="é" * 44)), "vector_invalid", "event_vector"),
    "an object": (of_json(event(event_vector={})), "vector_invalid", "event_vector"),
    "an object in msgpack": (of_msgpack(event(event_vector={})), "vector_invalid", "event_vector"),
    "a number": (of_json(event(event_vector=1)), "vector_invalid", "event_vector"),
    "vector null": (json_with(event_vector="null"), "vector_invalid", "event_vector"),
    "text inside": (of_json(event(event_vector=[*EXAMPLE[:-1], "1"])), "vector_invalid", "event_vector[7]"),
    "null inside": (json_with(event_vector="[1,null]"), "vector_invalid", "event_vector[1]"),
    "1e999 inside": (json_with(event_vector="[1,2,1e999,4,5,6,7,8]"), "vector_invalid", "event_vector[2]"),
    "float32 overflow": (of_json(event(event_vector=[*EXAMPLE[:-1], 1e39])), "not_finite", "event_vector[7]"),
    "NaN in msgpack": (of_msgpack(event(event_vector=[NAN, *EXAMPLE[1:]])), "not_finite", "event_vector[0]"),
    "infinity in bin": (of_msgpack(event(event_vector=floats([-np.inf] * 8))), "not_finite", "event_vector[0]"),
    "NaN in base64": (of_json(event(event_vector=text([*EXAMPLE[:-1], NAN]))), "not_finite", "event_vector[7]"),
    "NaN in raw": (of_raw(floats([NAN] * 8), **{"Moral-Value": "1"}), "not_finite", "event_vector[0]"),
    "norm": (of_json(event(event_vector=[1_000_001, *[0] * 7])), "norm_too_large", "event_vector"),
    "norm of many": (of_raw(floats([400_000] * 8), **{"Moral-Value": "1"}), "norm_too_large", "event_vector"),
    # the payload
    "an extension": (of_msgpack(event(payload=msgspec.msgpack.Ext(5, b"x"))), "payload_invalid", "payload"),
    "an array as a key": (of_msgpack(event(payload={(1, 2): 3})), "payload_invalid", "payload"),
    "nil as a key": (of_msgpack(event(payload={None: 3})), "payload_invalid", "payload"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_an_unparsable_body_is_400_and_changes_nothing(still_server: LiveServer, case: str) -> None:
    """A body that is not JSON or msgpack at all, alone or in the place of a batch."""
    for path in ("/event", "/events", "/recall"):
        document = refused(still_server, path, MALFORMED[case])
        if path == "/event":
            assert (document["status"], document["code"]) == (400, "malformed_body")
        assert document["status"] in (400, 413, 422)


@pytest.mark.parametrize("case", INVALID)
def test_a_wrong_value_is_422_names_its_field_and_moves_nothing(still_server: LiveServer, case: str) -> None:
    """Neither counters, nor threshold, nor log position change."""
    body, code, field = INVALID[case]

    document = refused(still_server, "/event", body)

    assert (document["status"], document["code"], document["field"]) == (422, code, field)


@pytest.mark.parametrize(
    "case", [name for name in INVALID if INVALID[name][0].headers["Content-Type"] != "application/octet-stream"]
)
def test_one_wrong_item_refuses_the_whole_batch(still_server: LiveServer, case: str) -> None:
    """A batch is validated whole before its first event is admitted; the field says which item is wrong."""
    body, code, field = INVALID[case]
    if body.headers["Content-Type"] == "application/json":
        batch = of_json(b"[" + json_with().content + b"," + body.content + b"]")
    else:
        batch = of_msgpack(b"\x92" + pack(event()) + body.content)

    document = refused(still_server, "/events", batch)

    where = "[1]" if field == "body" else f"[1].{field}"
    assert (document["status"], document["code"]) == (422, code)
    assert document["field"] == ("body" if code == "field_repeated" and field == "body" else where)


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (of_json([]), "batch_empty", "body"),
        (of_msgpack([]), "batch_empty", "body"),
        (of_raw(b""), "batch_empty", "body"),
        (of_json([event()] * 1001), "batch_too_long", "body"),
        (of_msgpack([event()] * 1001), "batch_too_long", "body"),
        (BATCH_FORMS["raw"]([(EXAMPLE, 1.0)] * 1001), "batch_too_long", "body"),
        (of_json({}), "field_invalid", "body"),
        (of_raw(bytes(39)), "dimension_mismatch", "body"),
        (BATCH_FORMS["raw"]([(EXAMPLE, 1.0), (EXAMPLE, NAN)]), "moral_value_out_of_range", "[1].moral_value"),
        (BATCH_FORMS["raw"]([(EXAMPLE, 1.0), ([NAN] * 8, 1.0)]), "not_finite", "[1].event_vector[0]"),
        (BATCH_FORMS["raw"]([(EXAMPLE, 1.0), ([1e6] * 8, 1.0)]), "norm_too_large", "[1].event_vector"),
    ],
)  # fmt: skip
def test_a_batch_of_a_wrong_form_is_refused(still_server: LiveServer, body: Body, code: str, field: str) -> None:
    """By its number of events, its size, its type, or a single item of its raw form."""

    document = refused(still_server, "/events", body)

    assert (document["status"], document["code"], document["field"]) == (422, code, field)


@pytest.mark.parametrize("path", ["/event", "/events"])
def test_a_payload_one_byte_too_large_is_413(still_server: LiveServer, path: str) -> None:
    """1,025 bytes in its compact form, however it came."""
    large = event(payload="x" * 1023)
    document: Any = [event(), large] if path == "/events" else large

    for body in (of_json(document), of_msgpack(document)):
        refusal = refused(still_server, path, body)
        assert (refusal["status"], refusal["code"]) == (413, "payload_too_large")
        assert refusal["field"] == ("[1].payload" if path == "/events" else "payload")
        assert refusal["expected"] == "at most 1024 bytes as compact JSON in UTF-8"


def test_a_refusal_does_not_repeat_a_long_name(still_server: LiveServer) -> None:
    """What a client sent is quoted in part, however long it is."""

    answer = post(still_server, "/event", of_json(event(**{"x" * 10_000: 1})))

    assert problem(answer)["code"] == "field_unknown"
    assert len(answer.body) < 1000


# -- anything at all ---------------------------------------------------------------------------------------------------
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
ALMOST = st.fixed_dictionaries(
    {"event_vector": ANY_JSON | st.lists(st.floats(width=32), min_size=7, max_size=9) | st.just(EXAMPLE)},
    optional={
        "moral_value": ANY_JSON | st.floats(-0.1, 1.1),
        "payload": ANY_JSON,
        "vector": ANY_JSON | st.just(EXAMPLE),
        "top_k": ANY_JSON | st.integers(-1, 102),
        "phase": st.text(max_size=3) | st.sampled_from(("any", "wake", "nap")),
        "include": ANY_JSON,
    },
)


def harmless(server: LiveServer, path: str, body: Body) -> None:
    """Send a body; no answer may be a failure of the server, and only 200 may move the state."""
    before = server.state()
    answer = post(server, path, body)
    assert answer.status < 500, (body, answer.body)
    if answer.status != 200:
        problem(answer)
        assert server.state() == before, body


@pytest.mark.parametrize("path", ["/event", "/events", "/recall"])
@given(document=ANY_JSON | ALMOST | st.lists(ALMOST, max_size=3))
@settings(max_examples=80, deadline=None)
def test_no_document_fails_the_server(still_server: LiveServer, path: str, document: Any) -> None:
    """Any document, as JSON and as msgpack, is answered properly and moves the state only when it is taken."""
    harmless(still_server, path, of_json(document))
    try:
        packed = of_msgpack(document)
    except OverflowError:  # msgpack has no integer of more than 64 bits
        return
    harmless(still_server, path, packed)


@pytest.mark.parametrize("path", ["/event", "/events", "/recall"])
@given(media=st.sampled_from((of_json, of_msgpack, of_raw)), noise=st.binary(max_size=80), at=st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_no_bytes_fail_the_server(still_server: LiveServer, path: str, media: Any, noise: bytes, at: int) -> None:
    """Neither plain noise nor a good body with noise inside."""
    good = json_with().content if media is of_json else pack(event(payload={"a": [1, "b"]}))
    spoilt = good[:at] + noise + good[at + len(noise) :]

    harmless(still_server, path, media(noise))
    harmless(still_server, path, media(spoilt))


def test_raw_moral_values_are_float64(still_server: LiveServer) -> None:
    """The raw batch carries moral values in full, ahead of all vectors."""
    body = of_raw(struct.pack("<2d", 1.0, 0.1) + RAW_EXAMPLE + RAW_EXAMPLE)

    assert [result["moral_value"] for result in sent(still_server, "/events", body)["results"]] == [1.0, 0.1]


def test_a_msgpack_payload_is_bounded_before_it_is_decoded(still_server: LiveServer) -> None:
    """Empty lists would become eighty times their size as objects."""
    packed = msgspec.msgpack.encode({"event_vector": [0.5] * 8, "moral_value": 0.5, "payload": [[]] * 9_400})

    answer = still_server.request("POST", "/event", packed, {"Content-Type": "application/msgpack"})

    assert (answer.status, answer.json["code"], answer.json["field"]) == (413, "payload_too_large", "payload")
    assert "bytes of msgpack" in answer.json["detail"]


def test_an_event_has_one_time_on_every_surface(still_server: LiveServer) -> None:
    """`created_at` of the decision is that of the memory, of the match, of the log entry, and of a repeated answer."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    document = json.dumps(event(moral_value=1.0)).encode()
    first, again = (still_server.request("POST", "/event", document, headers=key) for _ in range(2))
    decision = first.json

    memory = still_server.get(f"/memories/{decision['memory_id']}").json
    [entry] = still_server.get(f"/decisions?after={decision['position'] - 1}&limit=1").json["entries"]
    [match] = still_server.request("POST", "/recall", json.dumps({"vector": EXAMPLE, "top_k": 1}).encode()).json[
        "matches"
    ]

    assert first.body == again.body
    assert [memory["created_at"], entry["created_at"], match["created_at"]] == [decision["created_at"]] * 3


def test_times_never_go_back(still_server: LiveServer) -> None:
    """The later position has the later time, or the same one; the texts compare as the times do."""
    for _ in range(20):
        accepted(still_server)
    entries = still_server.get("/decisions?limit=1000").json["entries"]
    times = [entry["created_at"] for entry in entries]

    assert times == sorted(times)
