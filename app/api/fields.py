"""The glossary: what the members that several answers share are called, mean and may be.

A name means the same wherever it stands, so its type, range and sentence are spelled here and nowhere else; the
documents that are generated from the answers' types (`modules.openapi.document`, `modules.openapi.page`) quote them.
Annotations say nothing at run time: encoding an answer does not check it, the tests do.
"""

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

Phase: TypeAlias = Annotated[Literal["wake", "sleep"], Meta(description="Phase of the rhythm.", examples=["wake"])]
MemoryId: TypeAlias = Annotated[
    int, Meta(description="Number of a memory: the n-th accepted event. Never reused.", ge=1, examples=[1])
]
Position: TypeAlias = Annotated[
    int, Meta(description="Place in the log; every change of the state has one.", ge=0, examples=[42])
]
Ordinal: TypeAlias = Annotated[int, Meta(description="Number of a decision: 1, 2, 3 …", ge=1, examples=[7])]
MoralValue: TypeAlias = Annotated[
    float, Meta(description="The moral value that came with the event.", ge=0, le=1, examples=[0.8])
]
Threshold: TypeAlias = Annotated[
    float, Meta(description="What a moral value must reach to be accepted.", ge=0, le=1, examples=[0.5])
]
Ema: TypeAlias = Annotated[
    float,
    Meta(
        description="Moving average of acceptance, which moves the threshold when it leaves the band around one half.",
        ge=0, le=1, examples=[0.55],
    ),
]  # fmt: skip
AgeSeconds: TypeAlias = Annotated[float, Meta(description="Time since then, in seconds.", ge=0, examples=[12.5])]
Total: TypeAlias = Annotated[int, Meta(description="Events decided since the memory began.", ge=0, examples=[7])]
Accepted: TypeAlias = Annotated[int, Meta(description="Those that were accepted.", ge=0, examples=[5])]
Rejected: TypeAlias = Annotated[int, Meta(description="Those that were rejected.", ge=0, examples=[2])]
Live: TypeAlias = Annotated[int, Meta(description="Memories that can be recalled.", ge=0, examples=[5])]
Capacity: TypeAlias = Annotated[int, Meta(description="Memories that there is room for.", ge=1, examples=[20_000])]
Step: TypeAlias = Annotated[int, Meta(description="Steps of the rhythm so far.", ge=0, examples=[42])]
Norm: TypeAlias = Annotated[float, Meta(description="Euclidean norm of a synaptic level.", ge=0, examples=[1.25])]
BootId: TypeAlias = Annotated[
    str,
    Meta(
        description="Which memory ids and positions belong to: a new start is another one, and empty.",
        pattern="^[0-9a-f]{32}$", examples=["5e0b7c1f9d2a4e868f3a1c0d7b6e5f42"],
    ),
]  # fmt: skip

MICROSECOND_NS: Final = 1_000
MILLISECOND_NS: Final = 1_000_000


def age_seconds(then_ns: int, now_ns: int, resolution_ns: int = MICROSECOND_NS) -> float:
    """Return the time from `then_ns` to `now_ns` (CLOCK_BOOTTIME), rounded down to `resolution_ns`; never negative."""
    return max(0, now_ns - then_ns) // resolution_ns * resolution_ns / 1_000_000_000


_Type = TypeVar("_Type", bound=type[msgspec.Struct])


def component(name: str) -> Callable[[_Type], _Type]:
    """Return a class decorator that sets the name of a type's component in the OpenAPI document.

    Component names are part of the API: generated clients have classes of these names. So a type keeps its component's
    name when it is renamed in the code.
    """

    def rename(described: _Type) -> _Type:
        described.__name__ = name  # msgspec calls the component by it
        return described

    return rename
