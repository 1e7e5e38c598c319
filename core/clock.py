"""Time: the boot clock, from which `Block.log_time` makes log time, and log time as text.

The boot clock never steps, and suspended time counts.
"""

import time
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Final

# PERF: a partial has no Python frame, which would be a third of the 0.13 µs of a call; an event reads the clock twice.
boot_clock: Final = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
_UNIX_EPOCH: Final = datetime(1970, 1, 1)


def elapsed_seconds(then_ns: int, now_ns: int) -> float:
    """Return the seconds from `then_ns` to `now_ns`; 0 when `then_ns` was written after the clock was read."""
    return max(0, now_ns - then_ns) / 1e9


def rfc3339(time_ns: int) -> str:
    """Return log time (ns UTC) as RFC 3339 with nine decimals: texts sort and compare as the times do."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{_date_and_time(seconds)}.{nanoseconds:09}Z"


@lru_cache(maxsize=64)
def _date_and_time(seconds: int) -> str:
    """Return the text of a whole second. PERF: consecutive events and entries share one: 0.2 instead of 0.7 µs."""
    return (_UNIX_EPOCH + timedelta(seconds=seconds)).isoformat()
