"""Waits for a condition, however slow the machine is.

Invariants: a test waits for the condition that it judges, and asserts nothing about the time. HANG_SECONDS is the only
bound; it ends what would never end. Speed is judged in `loadtests`, on an idle machine.
"""

import time
from collections.abc import Callable
from typing import Final, Literal, TypeVar

Value = TypeVar("Value")

HANG_SECONDS: Final = 300.0  # of a socket, a subprocess or a wait; 5 s of CPU took 180 s on two cores with load 30
_PAUSE_SECONDS_MIN: Final = 0.0005
_PAUSE_SECONDS_MAX: Final = 0.02


def eventually(holds: Callable[[], Value | Literal[False, 0] | None], seconds: float = HANG_SECONDS) -> Value:
    """Return the first true value that `holds` returns. Raises AssertionError when there was none for `seconds`."""
    deadline, pause = time.monotonic() + seconds, _PAUSE_SECONDS_MIN
    while not (value := holds()):
        assert time.monotonic() < deadline, f"{holds} did not hold within {seconds:g} s"
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)
    return value
