"""Descriptors: as many open files as the connections of a worker need.

Each connection is a descriptor, and the customary soft limit of 1,024 is one that a shell inherited, not one that
somebody chose for a server. The arbiter raises its own soft limit as far as the hard one allows, and what it forks
inherits that. The hard limit is the operator's: when it is too low there is one warning that names both numbers, and a
worker that runs out of descriptors pauses accepting (`app.httpd.acceptor`) long before anything fails.
"""

import logging
import resource
from typing import Final

from app.httpd.acceptor import REFUSED_COUNT_MAX

# Listening sockets, the loop, the block, logs, the files of metrics; and a connection has to be accepted to be refused.
_OTHERS_COUNT: Final = 64 + REFUSED_COUNT_MAX

log = logging.getLogger("mlsdm.server")


def raise_limit(connections_max: int) -> None:
    """Raise the soft limit of this process to what a worker of `connections_max` needs, or as far as it may go."""
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
