"""Runs faults in tests: with clients that rest, and without a judgement of the machine's speed."""

from pathlib import Path
from typing import Final

from loadtests.faults.fault import FaultOptions, Outcome

# A client that rests for this long between two requests has one under way for a third of the time, which is enough to
# be hit by a fault, and leaves the processors to the servers of other tests. `make faults` runs without a rest.
PAUSE_SECONDS: Final = 0.002
TIMED: Final = ("promised", "got a 503")  # in sentences that depend on how busy the machine is, and in no others


def options_of(directory: Path, scale: float, seed: int = 20251123) -> FaultOptions:
    """Return what a fault is run with."""
    return FaultOptions(scale, seed, directory, PAUSE_SECONDS)


def broken_promises(outcome: Outcome) -> list[str]:
    """Return the promises that did not hold, whatever the speed of the machine."""
    return [sentence for sentence in outcome.broken if not any(words in sentence for words in TIMED)]
