"""The names of a request: which ones are taken over, which are made, which are ignored."""

from typing import Any

import pytest

from app.httpd.request import REQUEST_ID, TRACE
from app.httpd.request_names import RequestNames, TraceContext, parse_traceparent

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def named(**fields: str) -> dict[str, Any]:
    environ: dict[str, Any] = dict(fields)
    RequestNames().assign(environ)
    return environ


@pytest.mark.parametrize("given", ["a", "x" * 128, "AZaz09._~+/=:-", "7d0cf0c4-7b0c-4b6e-9b6e-0c2d2b1f4f5a"])
def test_a_sane_request_id_is_taken_over(given: str) -> None:
    """The client's own name for its request is kept as it is."""
    assert given == named(HTTP_X_REQUEST_ID=given)[REQUEST_ID]


@pytest.mark.parametrize(
    "given", ["", "x" * 129, "a b", "a,b", 'a"b', "a\\b", "a\x1b[2J", "a\tb", "a;b", "\xe9", "<b>", "a\n"]
)
def test_another_request_id_is_replaced(given: str) -> None:
    """What could harm a log or a terminal is not repaired, but replaced by a made one."""
    made = named(HTTP_X_REQUEST_ID=given)[REQUEST_ID]

    assert len(made) == 24
    assert int(made, 16)


def test_made_ids_differ() -> None:
    """No two requests of one worker have the same, nor do two workers make the same."""
    first, second = RequestNames(), RequestNames()
    made = [tracer.new_id() for tracer in (first, second) for _ in range(1_000)]

    assert len(set(made)) == 2_000


def test_a_refused_head_is_searched_for_its_id() -> None:
    """The field counts when it is sane and alone, however its name is spelled."""
    tracer = RequestNames()

    assert tracer.id_from_fields([(b"Host", b"a"), (b"x-Request-ID", b"abc \t")]) == "abc"
    for fields in ([], [(b"X-Request-ID", b"a b")], [(b"X-Request-ID", b"a")] * 2, [(b"X_Request_ID", b"a")]):
        assert len(tracer.id_from_fields(fields)) == 24


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (f"00-{TRACE_ID}-{PARENT_ID}-01", "01"),
        (f"00-{TRACE_ID}-{PARENT_ID}-00", "00"),
        (f"00-{TRACE_ID}-{PARENT_ID}-03", "03"),
        (f"00-{TRACE_ID}-{PARENT_ID}-ff", "03"),  # unknown bits are passed on as zero
        (f"01-{TRACE_ID}-{PARENT_ID}-01", "01"),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-what-the-future-will-be-like", "01"),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-", "01"),
    ],
)
def test_valid_traceparent(given: str, flags: str) -> None:
    """Version 00 is exact; a later version may say more behind it (Trace Context §4.3)."""
    assert TraceContext(TRACE_ID, PARENT_ID, flags) == named(HTTP_TRACEPARENT=given)[TRACE]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00",
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{TRACE_ID}-{PARENT_ID}-1",
        f"00-{TRACE_ID}-{PARENT_ID}-001",
        f"00-{TRACE_ID}-{PARENT_ID}-01-",
        f"00-{TRACE_ID}-{PARENT_ID}-01-more",
        f"cc-{TRACE_ID}-{PARENT_ID}-01.more",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"0g-{TRACE_ID}-{PARENT_ID}-01",
        f"0-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"00-{TRACE_ID[1:]}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}a-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f" 00-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01,00-{TRACE_ID}-{PARENT_ID}-01",
        f"01-{TRACE_ID}-{PARENT_ID}-01-x,01-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01\n",
    ],
)
def test_invalid_traceparent_is_as_if_absent(given: str) -> None:
    """It is neither understood nor passed on."""
    environ = named(HTTP_TRACEPARENT=given)

    assert TRACE not in environ
    assert "traceparent" not in RequestNames().response_lines(environ)


def test_spans_are_never_all_zeros() -> None:
    """Even where the random source gives nothing but zeros, the span id is one that the standard calls valid."""
    tracer = RequestNames(bytes)
    line = tracer.response_lines({REQUEST_ID: "r", TRACE: TraceContext(TRACE_ID, PARENT_ID, "01")})
    value = line.split("traceparent: ")[1].strip()

    assert parse_traceparent(value) is not None
