"""The limit of open files, raised to what the connections of a worker need.

Each connection needs a descriptor, and the usual soft limit of 1,024 is a default for shells. The arbiter raises its
soft limit up to the hard limit, and its children inherit it. Only the operator can raise the hard limit: if it is too
low, one warning names both numbers, and a worker holds no more connections than it has descriptors for
(`app.httpd.connection_caps`).
"""

import logging
import resource
from typing import Final

from app.httpd.connection_caps import BATCH_COUNT_MAX, SURPLUS_COUNT_MAX

# Listening sockets, the loop, the block, logs, metric files; connections above the cap, and a batch of new ones.
_OTHERS_COUNT: Final = 64 + SURPLUS_COUNT_MAX + BATCH_COUNT_MAX

log = logging.getLogger("mlsdm.server")


def raise_limit(connections_max: int) -> None:
    """Raise the soft limit of this process to what a worker of `connections_max` needs, or to the hard limit."""
    needed = connections_max + _OTHERS_COUNT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        return
    if hard != unlimited and hard < needed:
        log.warning(
            "a worker may open %d files (the hard limit of RLIMIT_NOFILE) and would need %d for "
            "server.connections_max = %d: raise the limit (ulimit -Hn, LimitNOFILE, --ulimit nofile) or the setting is "
            "not reached",
            hard, needed, connections_max,
        )  # fmt: skip
        needed = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
