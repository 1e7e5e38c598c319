"""The extent of a body: how many bytes an event, or the query of a recall, may take in any form, white space and all.

The largest body that the connection takes is that of a batch; most of it would be wasted on anything else. What one
event can need follows from the dimension and the largest payload, with room to spare. A larger one is refused before it
is decoded, and where its length is announced before it is read. So what it costs to refuse a body is bounded by what
the client could have asked for: a batch of so many bytes has at least so many events, and these are charged in advance
(app/api/access/gate.py), before anybody has looked into it.
"""

from typing import Final

from app.api.operation import Operation
from app.api.problem import Problem
from core.limits import BODY_SIZE

# The longest decimal form of a float64 is 24 characters; a comma, a line break and the indentation of a pretty printer
# make that less than 48. Some languages write all digits that a number has: 64 leave room for most of them.
_NUMBER_SIZE: Final = 64
_PAYLOAD_SIZE: Final = 9  # bytes of msgpack that may become one of JSON: a 0 as a 64-bit integer
_MEMBERS_SIZE: Final = 1_024  # their names, the other values, and what surrounds them


def event_size_max(dimension: int, payload_size_max: int) -> int:
    """Return how many bytes an event may have."""
    return _NUMBER_SIZE * dimension + _PAYLOAD_SIZE * payload_size_max + _MEMBERS_SIZE


def query_size_max(dimension: int) -> int:
    """Return how many bytes the query of a recall may have."""
    return event_size_max(dimension, 0)


def refuse_above(size: int, size_max: int) -> None:
    """Raise the 413 for a body of `size` bytes when there may be only `size_max`."""
    if size > size_max:
        expected = f"at most {size_max} bytes"
        raise Problem(
            BODY_SIZE.status, BODY_SIZE.code, f"body: {size} bytes; expected {expected}", field="body",
            expected=expected,
        )  # fmt: skip


def item_count_min(size: int, operation: Operation) -> int:
    """Return how many items a batch of `size` bytes has at least."""
    return max(1, -(-size // operation.item_size_max))
