"""The output of a run: a table for people and a JSON document for programs, from the same results."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from loadtests.bench.comparison import Result, median, to_json
from loadtests.bench.goals import Goal, goal_of

_COLUMNS: Final = ("row", "held against", "requests/s", "vectors/s", "p50 µs", "p99 µs", "core", "CPU µs", "its CPU µs")
HEAD: Final = "| " + " | ".join((*_COLUMNS, "figure", "spread", "goal")) + " |"
BUSY_MIN: Final = 0.9
RULE: Final = "|---|---|" + "---:|" * 10


def line(result: Result) -> str:
    """Return a row of the table."""
    row, one, other = result.row, median(result.subject), median(result.reference)
    goal = goal_of(row.name)
    unit = "×" if row.figure == "gain" else ""
    cells = [
        row.name, row.against, f"{one.requests_per_second:,.0f}", f"{one.items_per_second:,.0f}", f"{one.p50_us:,.0f}",
        f"{one.p99_us:,.0f}", f"{one.busy:.0%}", _cost(one.cpu_us), _cost(other.cpu_us), f"{result.ratio:.2f}{unit}",
        f"{min(result.ratios):.2f}–{max(result.ratios):.2f}", _judged(goal, result.ratio),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _cost(cpu_us: float) -> str:
    return f"{cpu_us:,.1f}" if cpu_us < 1_000 else f"{cpu_us:,.0f}"


def _judged(goal: Goal | None, figure: float) -> str:
    if goal is None:
        return ""
    return f"{goal} {'✓' if goal.holds(figure) else '✗'}"


def starved(result: Result) -> bool:
    """Return whether the measured side got less of its core than a saturated server takes."""
    return median(result.subject).busy < BUSY_MIN


def figures(results: list[Result], others: Mapping[str, float]) -> dict[str, float]:
    """Return one figure per row, and the others."""
    return {result.row.name: result.ratio for result in results} | dict(others)


def write(path: Path, results: list[Result], others: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**about, "rows": [to_json(result) for result in results], **others}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> str:
    """Return the machine in a phrase."""
    model = "unknown processor"
    for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if text.startswith("model name"):
            model = text.partition(":")[2].strip()
            break
    return f"{model}, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
