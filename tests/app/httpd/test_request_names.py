"""The names of a request: which of the client's are accepted, replaced or ignored."""

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
def test_safe_request_id_is_kept(given: str) -> None:
    """A request id of safe characters is kept as it is."""
    assert given == named(HTTP_X_REQUEST_ID=given)[REQUEST_ID]


@pytest.mark.parametrize(
    "given", ["", "x" * 129, "a b", "a,b", 'a"b', "a\\b", "a\x1b[2J", "a\tb", "a;b", "\xe9", "<b>", "a\n"]
)
def test_unsafe_request_id_is_replaced(given: str) -> None:
    """A request id that could harm a log or a terminal is replaced by a new one."""
    made = named(HTTP_X_REQUEST_ID=given)[REQUEST_ID]

    assert len(made) == 24
    assert int(made, 16)


def test_new_ids_are_unique() -> None:
    """New ids are unique within a worker and among workers."""
    first, second = RequestNames(), RequestNames()
    made = [tracer.new_id() for tracer in (first, second) for _ in range(1_000)]

    assert len(set(made)) == 2_000


def test_refused_head_keeps_its_id() -> None:
    """The id of a refused head is used when it is safe and occurs once, in any spelling of the field name."""
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
    """Version 00 has an exact form; later versions may append more (Trace Context §4.3)."""
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
def test_invalid_traceparent_is_ignored(given: str) -> None:
    """An invalid traceparent gives no trace and is not echoed."""
    environ = named(HTTP_TRACEPARENT=given)

    assert TRACE not in environ
    assert "traceparent" not in RequestNames().response_lines(environ)


def test_spans_are_never_all_zeros() -> None:
    """The span id is valid even when the random source returns only zeros."""
    tracer = RequestNames(bytes)
    line = tracer.response_lines({REQUEST_ID: "r", TRACE: TraceContext(TRACE_ID, PARENT_ID, "01")})
    value = line.split("traceparent: ")[1].strip()

    assert parse_traceparent(value) is not None
