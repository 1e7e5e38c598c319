"""A fault: a function that disturbs a server and returns figures.

It gets a scale (1 for the full count), a seed and a directory, and returns an `Outcome`: how often it was done, what
was measured, and a sentence for each broken promise. It raises only when it could not be done at all.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


class FaultOptions(NamedTuple):
    """What a fault is run with.

    `directory` is its own, empty. `seed` makes its choices repeatable. `pause_seconds` is for how long a client rests
    between two requests: without a rest the clients take all of the machine.
    """

    scale: float
    seed: int
    directory: Path
    pause_seconds: float = 0.0

    def scaled(self, full: int) -> int:
        """Return `full` times the scale, at least 1."""
        return max(1, round(full * self.scale))

    def random(self) -> random.Random:
        """Return a generator that begins with the seed."""
        return random.Random(self.seed)


class Outcome(NamedTuple):
    """What came of a fault."""

    count: int  # type: ignore[assignment]  # how often the fault was injected; tuple.count, which it shadows, is not missed
    figures: Mapping[str, float | int | str]  # what was measured, by name with its unit
    broken: list[str]  # promises that did not hold


class Fault(NamedTuple):
    """One row of the table."""

    name: str
    promise: str  # what must hold, in a few words
    run: Callable[[FaultOptions], Outcome]
