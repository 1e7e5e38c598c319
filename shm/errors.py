"""What the native core answers, as exceptions: one class for each status of `layout.STATUSES` but ok.

They say what happened to the block, not what a client should do about it; the HTTP layer gives each its status code. In
every case but `Corrupt` and `Lost` the block is as it was before the call.
"""

from typing import Final, NoReturn

from shm import layout


class StoreError(Exception):
    """The block did not do what it was asked to."""


class Busy(StoreError):
    """The lock was not to be had in time; nothing happened."""


class Stopped(StoreError):
    """An operator has stopped admissions."""


class Stale(StoreError):
    """A newer controller has taken over; this one may not write."""


class Corrupt(StoreError):
    """A checksum did not hold; nothing was built on it."""


class Unknown(StoreError):
    """That id was never given, or that position has not happened yet."""


class Gone(StoreError):
    """That id or position was overwritten or deleted."""


class Unformed(StoreError):
    """No controller has formed the first state yet."""


class Taken(StoreError):
    """The command slot or the worker row belongs to somebody else."""


class NotFinite(StoreError):
    """A vector holds NaN or an infinity."""


class TooLong(StoreError):
    """A vector's norm is above the limit."""


class Lost(StoreError):
    """The mutex itself is beyond repair."""


class Reused(StoreError):
    """That idempotency key came with another body."""


class Exhausted(StoreError):
    """The container's memory is nearly full."""


OK: Final = layout.STATUSES.index("ok")
CORRUPT: Final = layout.STATUSES.index("corrupt")
TAKEN: Final = layout.STATUSES.index("taken")
NOT_FINITE: Final = layout.STATUSES.index("not_finite")
TOO_LONG: Final = layout.STATUSES.index("too_long")
_ERRORS: Final = (
    None, Busy, Stopped, Stale, Corrupt, Unknown, Gone, Unformed, Taken, NotFinite, TooLong, Lost, Reused,
    Exhausted,
)  # fmt: skip
assert len(_ERRORS) == len(layout.STATUSES)
assert all(
    error is None or error.__name__.lower() == name.replace("_", "")
    for error, name in zip(_ERRORS, layout.STATUSES, strict=True)
)


def raise_for(status: int) -> NoReturn:
    """Raise the exception that stands for a native status other than ok."""
    error = _ERRORS[status]
    assert error is not None
    raise error(error.__doc__)
