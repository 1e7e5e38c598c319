"""A fault: one way to harm a server, as a program with a figure.

A fault is a function of how much (`scale`, 1 for the full count) and a seed. It returns an `Outcome`: how often the
harm was done, what was measured, and each promise that was broken, as a sentence with its numbers. It raises only when
it could not be done at all.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


class FaultOptions(NamedTuple):
    """What a fault is run with. `directory` is its own, empty; `seed` makes its choices repeatable."""

    scale: float
    seed: int
    directory: Path

    def scaled(self, full: int) -> int:
        """Return how often to do what a full run does `full` times: once at least."""
        return max(1, round(full * self.scale))

    def random(self) -> random.Random:
        """Return a generator that begins with the seed."""
        return random.Random(self.seed)


class Outcome(NamedTuple):
    """What came of a fault."""

    count: int  # type: ignore[assignment]  # how often the harm was done; tuple.count, which it shadows, is not missed
    figures: Mapping[str, float | int | str]  # what was measured, by name with its unit
    broken: list[str]  # promises that did not hold


class Fault(NamedTuple):
    """One row of the table."""

    name: str
    promise: str  # what must hold, in a few words
    run: Callable[[FaultOptions], Outcome]
