"""Play a runbook: `python -m tests.runbook FILE.md` prints a table, and ends with 1 when a line failed."""

import sys
import tempfile
from pathlib import Path

from tests.runbook.book import lines_of
from tests.runbook.stage import Stage


def main(path: Path) -> int:
    """Play every line; returns how the program ends."""
    lines = lines_of(path)
    failed = 0
    with tempfile.TemporaryDirectory() as directory, Stage(Path(directory)).playing() as stage:
        print("| line | what | how | result |\n|---:|---|---|---|")
        for line in lines:
            outcome = stage.play(line)
            failed += not outcome.held
            text = " ".join(line.text.split()).replace("|", "\\|")
            seen = " ".join(outcome.seen.split()).replace("|", "\\|")[:100]
            mark = "✓" if outcome.held else "✗"
            print(f"| {line.number} | `{text[:110]}` | {outcome.how} | {mark} {seen} |", flush=True)
    print(f"\n{len(lines)} lines, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
