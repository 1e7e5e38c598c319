"""A refusal: why the store does not carry out a transition. A refused transition changes nothing."""

from typing import Literal

Reason = Literal[
    "stopped",  # an operator has stopped admissions
    "unknown",  # no memory and no namespace of this identity was ever given
    "gone",  # the memory or the namespace has been; an expired memory is gone from its instant on
    "closing",  # the namespace is being deleted
    "exists",  # the event may only create, and a memory has its own id
    "changed",  # the memory has another version than the one that the caller read
    "invalid",  # a value of the request is out of its range
    "pins_full",  # one more pin would exceed the share of pins, or the room that is promised to others
    "namespace_full",  # the namespace is at its limit, and all of its memories are pinned
    "no_room",  # every memory is pinned or within a reserved share, or the caller forbade to evict one
    "promised",  # the reserved shares and pins of all namespaces would exceed the capacity
    "namespaces_full",  # no row is free, or entries in reach still name those that are
    "not_empty",  # the namespace still has memories
    "nothing",  # there is nothing to do
]


class Refused(Exception):
    """Raised before anything is changed. `reason` is for programs, the message for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
