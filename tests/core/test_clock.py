"""Clock: log time as text, and the boot clock that advances it."""

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from core.clock import elapsed_seconds, rfc3339

TIMES = st.integers(-(2**63), 2**63 - 1)


def test_log_time_is_told_with_nine_decimals() -> None:
    """RFC 3339 §5.6, in UTC; a time before 1970 counts backwards."""
    told = [rfc3339(0), rfc3339(1_769_860_800_123_456_789), rfc3339(-1)]

    assert told == [
        "1970-01-01T00:00:00.000000000Z", "2026-01-31T12:00:00.123456789Z", "1969-12-31T23:59:59.999999999Z",
    ]  # fmt: skip


@given(TIMES)
def test_no_nanosecond_is_lost(time_ns: int) -> None:
    """A reader gets back the time that was stored: every value of the field."""
    told = rfc3339(time_ns)
    seconds_ns = round(datetime.fromisoformat(told[:19] + "+00:00").timestamp()) * 1_000_000_000

    assert seconds_ns + int(told[20:29]) == time_ns


@given(TIMES, TIMES)
def test_texts_sort_as_the_times_do(one_ns: int, other_ns: int) -> None:
    """So a client may compare texts."""
    assert (rfc3339(one_ns) < rfc3339(other_ns)) == (one_ns < other_ns)


def test_elapsed_time_is_never_negative() -> None:
    """Another process may have read its clock later than this one."""
    assert [elapsed_seconds(5, 1_500_000_005), elapsed_seconds(5, 4)] == [1.5, 0]
