"""Body sizes: how many bytes an event, or the query of a recall, may have in any form, white space included.

The connection accepts bodies up to the size of the largest batch, which is far more than one event needs: that follows
from the dimension and the largest payload, with room to spare. A larger body is refused before it is decoded, and if
its length is announced, before it is read. So the cost of refusing a body is bounded: a batch of a given size has a
minimum number of events, which the gate compares with the client's burst (app/api/access/gate.py).
"""

from typing import Final

from app.api.operation import Operation
from app.api.problem import Problem
from core.limits import BODY_SIZE

# The longest decimal form of a float64 has 24 characters; with a comma, a line break and the indentation of a pretty
# printer it stays below 48. Some languages write all digits of a number: 64 leave room for most of them.
_NUMBER_SIZE: Final = 64
_PAYLOAD_SIZE: Final = 9  # bytes of msgpack that may become one of JSON: a 0 as a 64-bit integer
_MEMBERS_SIZE: Final = 1_024  # the names of the members, the other values, brackets and colons


def event_size_max(dimension: int, payload_size_max: int) -> int:
    """Return the maximum size of an event in bytes."""
    return _NUMBER_SIZE * dimension + _PAYLOAD_SIZE * payload_size_max + _MEMBERS_SIZE


def query_size_max(dimension: int) -> int:
    """Return the maximum size of a recall in bytes."""
    return event_size_max(dimension, 0)


def refuse_above(size: int, size_max: int) -> None:
    """Raise the 413 for a body of more than `size_max` bytes."""
    if size > size_max:
        expected = f"at most {size_max} bytes"
        raise Problem(
            BODY_SIZE.status, BODY_SIZE.code, f"body: {size} bytes; expected {expected}", field="body",
            expected=expected,
        )  # fmt: skip


def item_count_min(size: int, operation: Operation) -> int:
    """Return the minimum number of items in a batch of `size` bytes."""
    return max(1, -(-size // operation.item_size_max))
