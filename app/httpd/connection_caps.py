"""How many connections a worker holds: the configured number, or what its descriptors suffice for.

Both limit the same thing, so there is one policy: at the cap the longest idle connection makes room, and without one
the newcomer is a surplus connection (`app.httpd.surplus_connection`). A cap above the descriptors would never be
reached: idle clients would hold the last descriptor, and the probe of an orchestrator would wait in the backlog.
"""

import os
from typing import Final, NamedTuple

BATCH_COUNT_MAX: Final = 64
# Surplus connections at the same time. Two full batches of the acceptor, so that one which has just been accepted is
# read before newer ones can replace it.
SURPLUS_COUNT_MAX: Final = 2 * BATCH_COUNT_MAX
_SURPLUS_COUNT_MIN: Final = 4
_BATCH_COUNT_MIN: Final = 4
# Descriptors for what a worker opens while it serves: metric files, /proc, log files, sockets of modules.
_SPARE_COUNT: Final = 16


class ConnectionCaps(NamedTuple):
    """The caps of one worker."""

    connections: int
    surplus: int
    batch: int  # accepted in one turn of the loop: what makes room for them is closed in the next one


def caps_of(configured: int, descriptors_max: int, descriptors_used: int) -> ConnectionCaps:
    """Return the caps for a limit of descriptors, of which some are in use; at least one connection."""
    free = descriptors_max - descriptors_used - _SPARE_COUNT
    surplus = max(_SURPLUS_COUNT_MIN, min(SURPLUS_COUNT_MAX, free // 4))
    batch = max(_BATCH_COUNT_MIN, min(BATCH_COUNT_MAX, free // 8))
    return ConnectionCaps(max(1, min(configured, free - surplus - batch)), surplus, batch)


def count_descriptors() -> int:
    """Return how many descriptors this process has open; an estimate when /proc cannot be read."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64
