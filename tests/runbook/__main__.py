"""Runs a runbook: `python -m tests.runbook FILE.md` prints a table and exits with 1 when a line failed.

`--record` replaces the text blocks after its commands with their shortened output. `--strict`, for our own runbooks,
fails commands that work only in a small quiet cluster (tests/runbook/stage.py).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.runbook.book import Line, lines_of
from tests.runbook.stage import Outcome, Stage

SEEN_LINES_MAX: Final = 14  # of one command
SEEN_WIDTH_MAX: Final = 150


def main(path: Path, record: bool, strict: bool) -> int:
    """Play every line; returns how the program ends."""
    lines = lines_of(path)
    outcomes: dict[Line, Outcome] = {}
    with tempfile.TemporaryDirectory() as directory, Stage(Path(directory), strict).playing() as stage:
        print("| line | what | how | result |\n|---:|---|---|---|")
        for line in lines:
            outcome = outcomes[line] = stage.play(line)
            result = f"{'✓' if outcome.held else '✗'} {_cell(outcome.seen)[:100]}"
            print(f"| {line.number} | `{_cell(line.text)[:110]}` | {outcome.how} | {result} |")
            sys.stdout.flush()
    if record:
        path.write_text(recorded(path.read_text(encoding="utf-8"), outcomes), encoding="utf-8")
    failed = sum(not outcome.held for outcome in outcomes.values())
    print(f"\n{len(lines)} lines, {failed} failed")
    return min(failed, 1)


def recorded(book: str, outcomes: dict[Line, Outcome]) -> str:
    """Return a runbook in which each block of text holds what the block of commands before it has printed."""
    seen: list[str] = []
    kept: list[str] = []
    language: str | None = None
    starts = {line.number: outcome for line, outcome in outcomes.items() if line.language == "bash"}
    for number, text in enumerate(book.splitlines(), 1):
        if text.startswith("```") and language is None:
            language = text.removeprefix("```")
            seen = seen if language == "text" else []
        elif text.startswith("```"):
            if language == "text":
                kept += seen
            language = None
        elif language == "text":
            continue
        if number in starts:
            seen += _shortened(starts[number].seen)
        kept.append(text)
    return "\n".join(kept) + "\n"


def _shortened(seen: str) -> list[str]:
    lines = [line if len(line) <= SEEN_WIDTH_MAX else line[: SEEN_WIDTH_MAX - 1] + "…" for line in seen.splitlines()]
    return lines if len(lines) <= SEEN_LINES_MAX else [*lines[: SEEN_LINES_MAX - 1], "…"]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.runbook")
    parser.add_argument("path", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--strict", action="store_true")
    asked = parser.parse_args()
    sys.exit(main(asked.path, asked.record, asked.strict))
