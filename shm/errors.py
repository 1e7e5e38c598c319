"""Exceptions of native statuses: one class for each status of `layout.STATUSES` but ok.

Invariants: the class of a status is named like it. Its message tells what happened to the block, not what a client
should do about it: the HTTP layer gives each its status code. In every case but `Corrupt` and `Lost` the block is as it
was before the call. A message is an attribute, not the docstring, which `python -OO` removes.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, NoReturn

from shm import layout


class StoreError(Exception):
    """A native call did not do what it was asked to do."""

    message: ClassVar[str] = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)


class Busy(StoreError):
    message = "The lock was not acquired in time; nothing happened."


class Stopped(StoreError):
    message = "An operator has stopped admissions."


class Stale(StoreError):
    message = "A newer controller has taken over, or the word of the epoch is damaged; this one may not write."


class Corrupt(StoreError):
    message = "A checksum does not match; the data was not used."


class Unknown(StoreError):
    message = "The id was never given, or the position has not happened yet."


class Gone(StoreError):
    message = "The memory was overwritten, deleted or lost, or the log entry was overwritten."


class Unformed(StoreError):
    message = "No controller has formed the first state yet."


class Taken(StoreError):
    message = "The command slot or the worker row belongs to another process."


class NotFinite(StoreError):
    message = "A vector holds NaN or an infinity."


class TooLong(StoreError):
    message = "The norm of a vector is above the limit."


class Lost(StoreError):
    message = "The mutex is irrecoverable; the server has to be restarted."


class Reused(StoreError):
    message = "The idempotency key came with another body before."


class Exhausted(StoreError):
    message = "The container's memory is nearly full."


class Closing(StoreError):
    message = "The namespace is being deleted."


class Exists(StoreError):
    message = "There is one of this name or id."


class Changed(StoreError):
    message = "The memory has another version than the one that was named."


class Invalid(StoreError):
    message = "A value is outside of its range."


class PinsFull(StoreError):
    message = "One more pin would exceed the share of pins, or the room that is promised to others."


class NamespaceFull(StoreError):
    message = "The namespace is at its limit, and all of its memories are pinned."


class NoRoom(StoreError):
    message = "Every memory is pinned or within a reserved share."


class Promised(StoreError):
    message = "The reserved shares and the pins of all namespaces would exceed the capacity."


class NamespacesFull(StoreError):
    message = "No row of the table of namespaces is free, or the log still names those that are."


class NotEmpty(StoreError):
    message = "The namespace has memories."


class Gap(StoreError):
    message = "The entry is not the next one: entries before it are missing."


class Diverged(StoreError):
    message = "The entry does not follow from the state of this block."


OK: Final = layout.STATUSES.index("ok")
CORRUPT: Final = layout.STATUSES.index("corrupt")
GONE: Final = layout.STATUSES.index("gone")
TAKEN: Final = layout.STATUSES.index("taken")
NOT_FINITE: Final = layout.STATUSES.index("not_finite")
TOO_LONG: Final = layout.STATUSES.index("too_long")
GAP: Final = layout.STATUSES.index("gap")
DIVERGED: Final = layout.STATUSES.index("diverged")

_BY_NAME: Final = {error.__name__: error for error in StoreError.__subclasses__()}
ERRORS: Final[Mapping[int, type[StoreError]]] = {
    status: _BY_NAME.pop(name.title().replace("_", "")) for status, name in enumerate(layout.STATUSES) if status != OK
}
assert not _BY_NAME, f"no status is named like {list(_BY_NAME)}"


def raise_for(status: int) -> NoReturn:
    """Raise the exception of a native status other than ok."""
    raise ERRORS[status]
