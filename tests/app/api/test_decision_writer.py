"""The writer of decisions: native code that knows the form of a view."""

import math
import struct
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from app.api.codec.media_types import encode
from app.api.decision_view import to_decision_view
from app.api.decision_writer import DecisionWriter

BOOT_ID, LOG_ID = "5e0b7c1f9d2a4e868f3a1c0d7b6e5f42", "0c9d4b7ae1f35826b1d0a7c4e96f8325"
WORD = st.integers(0, 2**64 - 1)
# What a server has: any double, thresholds of two decimals, and means of some decisions.
FRACTION = st.one_of(
    st.floats(0, 1),
    st.integers(0, 100).map(lambda hundredths: hundredths / 100),
    st.integers(0, 2**17).map(lambda parts: parts / 2**17),
    st.integers(0, 2**62).map(lambda bits: struct.unpack("<d", struct.pack("<Q", 0x3FF0000000000000 - (bits >> 4)))[0]),
    st.builds(lambda value, times: value * 0.9**times, st.floats(0.001, 1), st.integers(0, 60)),
)


def written(fraction: float) -> tuple[bytes, bytes]:
    """Return a decision as it is written, and as msgspec writes its view."""
    decided = (3, 2, 1, 1_769_860_800_123_456_789, fraction, fraction, fraction, fraction, 1, 7, 0)
    return DecisionWriter(BOOT_ID, LOG_ID).write(decided), encode(to_decision_view(decided, BOOT_ID, LOG_ID))


@given(
    st.tuples(WORD, WORD, WORD, st.integers(-(2**63), 2**63 - 1), FRACTION, FRACTION, FRACTION, FRACTION,
              st.integers(0, 1), st.integers(0, 7), st.integers(0, 1))
)  # fmt: skip
@example((2**64 - 1, 2**64 - 1, 2**64 - 1, 2**63 - 1, *[0.00012345678901234567] * 4, 1, 7, 1))  # the longest
def test_a_decision_is_written_as_msgspec_writes_its_view(decided: tuple[Any, ...]) -> None:
    """Byte for byte: the documented type and the written text are one."""
    expected = encode(to_decision_view(decided, BOOT_ID, LOG_ID))

    assert DecisionWriter(BOOT_ID, LOG_ID).write(decided) == expected


def test_fractions_at_the_ends_of_what_the_native_writer_takes_are_written_as_by_msgspec() -> None:
    """Around each power of two, around each decimal place, and beyond the smallest that is written without exponent."""
    edges = [
        0.0,
        -0.0,
        *(2.0**-n for n in range(21)),
        *(10.0**-n for n in range(1, 8)),
        *(n / 1000 for n in range(1001)),
    ]
    values = [value for edge in edges for value in (edge, math.nextafter(edge, 0), math.nextafter(edge, 1))]

    told, expected = zip(*(written(value) for value in values), strict=True)

    assert told == expected


@given(st.floats(1e-5, 1, exclude_max=True), st.integers(0, 1))
def test_no_fraction_between_is_left_to_msgspec(value: float, memory_id: int) -> None:
    """The native writer itself writes what nearly all decisions have."""
    writer = DecisionWriter("", "")
    writer._boot_id = "it was left to msgspec"

    assert b"left" not in writer.write((3, 2, memory_id, 0, value, value, value, value, 0, 7, 0))
