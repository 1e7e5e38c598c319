"""The goals of the benchmark: what each row must reach, and which rows miss it.

A goal whose row was not measured (a peer is not installed, or `--rows` excludes it) is reported as not measured.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Goal(NamedTuple):
    """The row's figure is at least, or at most, `bound`."""

    row: str
    bound: float
    most: bool = False

    def holds(self, figure: float) -> bool:
        """Return whether a figure reaches it."""
        return figure <= self.bound if self.most else figure >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:.3g}"


LOCK: Final = "wait for the lock, p99 at most, µs"

GOALS: Final = (
    Goal("/event raw", 0.80),
    Goal("/event base64", 0.72),
    Goal("/event JSON", 0.60),
    Goal("/state", 0.80),
    Goal("vectors of /events raw × 100", 10.0),
    Goal("floor", 2.0),  # at most half the processor time of the ASGI floor
    Goal("/recall", 3.0),
    Goal("/recall JSON against Chroma", 2.0),
    Goal("/recall, identical vectors", 1 / 1.5),  # at most 1.5 times the processor time of brute force
    Goal("/event raw, 2 workers", 1 / 1.1),  # at most 1.1 times the processor time per event
    Goal("/event raw with limiter and metrics", 1 / 1.1),  # together at most 10 %, without a request log
    Goal(LOCK, 50.0, most=True),
)
_BY_ROW: Final = {goal.row: goal for goal in GOALS}


def goal_of(row: str) -> Goal | None:
    """Return the goal of a row, if it has one."""
    return _BY_ROW.get(row)


class Verdict(NamedTuple):
    """Sentences: the goals that fall short, and those that were not measured."""

    short: list[str]
    unmeasured: list[str]


def judge(figures: Mapping[str, float]) -> Verdict:
    """Return which goals the figures, by row, do not reach."""
    verdict = Verdict([], [])
    for goal in GOALS:
        if goal.row not in figures:
            verdict.unmeasured.append(f"{goal.row}: not measured; the goal is {goal}")
        elif not goal.holds(figures[goal.row]):
            verdict.short.append(f"{goal.row}: {figures[goal.row]:.3g}; the goal is {goal}")
    return verdict
