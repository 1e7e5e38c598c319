"""RFC 3339: log time as text."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from app.api.codec.rfc3339 import rfc3339, rfc3339_of

TIMES = st.integers(-(2**63), 2**63 - 1)


def test_log_time_is_told_with_nine_decimals() -> None:
    """RFC 3339 §5.6, in UTC; a time before 1970 counts backwards."""
    told = [rfc3339(0), rfc3339(1_769_860_800_123_456_789), rfc3339(-1)]

    assert told == [
        "1970-01-01T00:00:00.000000000Z", "2026-01-31T12:00:00.123456789Z", "1969-12-31T23:59:59.999999999Z",
    ]  # fmt: skip


@given(st.lists(TIMES, max_size=5))
def test_every_time_is_the_date_that_the_calendar_gives(times_ns: list[int]) -> None:
    """All times of 64 bits, to the nanosecond."""
    expected = []
    for time_ns in times_ns:
        seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
        expected.append(f"{(datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat()}.{nanoseconds:09}Z")

    assert rfc3339_of(times_ns) == expected


def test_every_day_of_four_centuries_has_its_date() -> None:
    """The calendar repeats after 400 years; these include all its leap days."""
    days = range((datetime(2262, 1, 1) - datetime(1862, 1, 1)).days)
    first = (datetime(1862, 1, 1) - datetime(1970, 1, 1)).days

    told = rfc3339_of([(first + day) * 86_400 * 1_000_000_000 for day in days])

    assert told == [f"{datetime(1862, 1, 1) + timedelta(days=day):%Y-%m-%dT00:00:00}.000000000Z" for day in days]


@given(TIMES, TIMES)
def test_texts_sort_as_the_times_do(one_ns: int, other_ns: int) -> None:
    """So a client may compare texts."""
    assert (rfc3339(one_ns) < rfc3339(other_ns)) == (one_ns < other_ns)
