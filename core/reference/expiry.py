"""Expiry, reference version: the instant at which a memory ends, and the one at which a transition or a read judges.

A memory ends at `expires_at`, before anything frees its slot. Until then it is absent for reads, own ids, updates and
deletions, and its slot is the first choice when room is needed. Only `expire` and that choice free it.
"""

from core.namespaces import NEVER
from core.reference.refusal import Refused


def read_instant(clock_ns: int, log_time_ns: int) -> int:
    """Return the instant at which a read judges, once per answer.

    `clock_ns` is read after the position of the answer is fixed; `log_time_ns` is the log time at that position. The
    later one counts, so that no read sees a memory that a transition at or before its position found expired.
    """
    return max(clock_ns, log_time_ns)


def end_of(expires_at: int | None, ttl_ns: int | None, default_ns: int, now_ns: int) -> int:
    """Return the instant at which a memory ends, NEVER for none.

    `expires_at` is an instant or NEVER, `ttl_ns` a lifetime that begins at `now_ns`, the time of the entry. Without
    both, `default_ns` is the lifetime. Raises Refused for both, for a lifetime below 1 ns and for an instant that has
    passed.
    """
    if expires_at is not None and ttl_ns is not None:
        raise Refused("invalid", "expires_at and ttl_ns exclude each other")
    if ttl_ns is not None:
        if ttl_ns < 1:
            raise Refused("invalid", f"ttl_ns is {ttl_ns}, a lifetime must be positive")
        return now_ns + ttl_ns
    if expires_at is not None:
        if expires_at != NEVER and expires_at <= now_ns:
            raise Refused("invalid", f"expires_at is {expires_at}, which has passed at {now_ns}")
        return expires_at
    return now_ns + default_ns if default_ns else NEVER
