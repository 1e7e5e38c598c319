"""Fields: the members that several responses share, each with its type, range and description.

Owns: their one definition, from which the OpenAPI document is generated. The server does not check its responses
against it; the tests do.
"""

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

Phase: TypeAlias = Annotated[
    Literal["wake", "sleep"], Meta(description="Phase of the wake/sleep rhythm.", examples=["wake"])
]
MemoryId: TypeAlias = Annotated[
    int, Meta(description="Number of a memory (n for the n-th accepted event); never reused.", ge=1, examples=[1])
]
Position: TypeAlias = Annotated[
    int, Meta(description="Position in the log of all changes of the state.", ge=0, examples=[42])
]
Ordinal: TypeAlias = Annotated[int, Meta(description="Number of a decision: 1, 2, 3 …", ge=1, examples=[7])]
MoralValue: TypeAlias = Annotated[float, Meta(description="Moral value of the event.", ge=0, le=1, examples=[1.0])]
Threshold: TypeAlias = Annotated[
    float, Meta(description="Moral value that an event must reach to be accepted.", ge=0, le=1, examples=[0.5])
]
Ema: TypeAlias = Annotated[
    float,
    Meta(
        description="Moving average of acceptance; the threshold moves while it is outside the dead band around 0.5.",
        ge=0, le=1, examples=[0.55],
    ),
]  # fmt: skip
AgeSeconds: TypeAlias = Annotated[float, Meta(description="Age in seconds.", ge=0, examples=[12.5])]
CreatedAt: TypeAlias = Annotated[
    str,
    Meta(
        description="Log time: UTC as RFC 3339, with nine decimals; never earlier than that of the position before.",
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$",
        examples=["2026-01-31T12:00:00.123456789Z"], extra_json_schema={"format": "date-time"},
    ),
]  # fmt: skip
Total: TypeAlias = Annotated[int, Meta(description="Events decided since the store was created.", ge=0, examples=[7])]
Accepted: TypeAlias = Annotated[int, Meta(description="Accepted events.", ge=0, examples=[5])]
Rejected: TypeAlias = Annotated[int, Meta(description="Rejected events.", ge=0, examples=[2])]
Live: TypeAlias = Annotated[int, Meta(description="Live memories: those that can be recalled.", ge=0, examples=[5])]
Capacity: TypeAlias = Annotated[int, Meta(description="Memories that the store can hold.", ge=1, examples=[20_000])]
Step: TypeAlias = Annotated[int, Meta(description="Steps of the rhythm so far.", ge=0, examples=[42])]
Norm: TypeAlias = Annotated[float, Meta(description="Euclidean norm of a synaptic level.", ge=0, examples=[1.25])]
BootId: TypeAlias = Annotated[
    str,
    Meta(
        description="The store's memory, which ends with the server.",
        pattern="^[0-9a-f]{32}$", examples=["5e0b7c1f9d2a4e868f3a1c0d7b6e5f42"],
    ),
]  # fmt: skip
LogId: TypeAlias = Annotated[
    str,
    Meta(
        description="The history that ids and positions belong to; those of another history mean nothing in it.",
        pattern="^[0-9a-f]{32}$", examples=["0c9d4b7ae1f35826b1d0a7c4e96f8325"],
    ),
]  # fmt: skip
Cursor: TypeAlias = Annotated[
    str,
    Meta(
        description="A position together with its history: `log_id:position`.",
        pattern="^[0-9a-f]{32}:[0-9]{1,19}$", examples=["0c9d4b7ae1f35826b1d0a7c4e96f8325:42"],
    ),
]  # fmt: skip

MICROSECOND_NS: Final = 1_000
MILLISECOND_NS: Final = 1_000_000


def age_seconds(then_ns: int, now_ns: int, resolution_ns: int = MICROSECOND_NS) -> float:
    """Return the time from `then_ns` to `now_ns` (log time), rounded down to `resolution_ns`; never negative."""
    return max(0, now_ns - then_ns) // resolution_ns * resolution_ns / 1_000_000_000


_Type = TypeVar("_Type", bound=type[msgspec.Struct])


def component(name: str) -> Callable[[_Type], _Type]:
    """Return a class decorator that sets the name of a type's component in the OpenAPI document.

    Component names are part of the API: generated clients have classes of these names. So a type keeps its component's
    name when it is renamed in the code.
    """

    def rename(described: _Type) -> _Type:
        described.__name__ = name  # msgspec takes the name of the component from here
        return described

    return rename
