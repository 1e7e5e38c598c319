"""A runbook as a document: its fenced blocks, and the commands in them.

A block has the language behind its fence, which determines a command: a shell command continues over backslashes and
open quotes until bash considers it complete; a PromQL expression is one line; a YAML block is one unit. In a block
without a language, which lists endpoints and names, every non-empty line counts.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_FENCE: Final = re.compile(r"^```(\w*)\s*$")


class Line(NamedTuple):
    """One thing to do or to look up. `number` is that of the line of the file that it begins on."""

    number: int
    language: str
    text: str


def lines_of(path: Path) -> list[Line]:
    """Return every line of every block of a Markdown file, in order."""
    found: list[Line] = []
    block: list[tuple[int, str]] = []
    language: str | None = None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(text)
        if language is None:
            if fence:
                language, block = fence[1], []
        elif fence:
            if language != "text":  # what a command has printed
                found += _lines(language, block)
            language = None
        else:
            block.append((number, text))
    assert language is None, f"{path}: a block is not closed"
    return found


def _lines(language: str, block: list[tuple[int, str]]) -> Iterator[Line]:
    if language == "yaml":
        yield Line(block[0][0], language, "\n".join(text for _, text in block))
        return
    begun: list[tuple[int, str]] = []
    for number, text in block:
        if not begun and (not text.strip() or text.lstrip().startswith("#")):
            continue
        begun.append((number, text))
        command = "\n".join(part for _, part in begun)
        if language == "bash" and not _is_complete(command):
            continue
        yield Line(begun[0][0], language, command.strip())
        begun = []
    assert not begun, f"line {begun[0][0]}: a command without an end"


def _is_complete(command: str) -> bool:
    """Return whether bash would run this and not ask for more."""
    if command.endswith("\\"):
        return False
    asked = subprocess.run(
        ["bash", "-n", "-c", without_placeholders(command)], capture_output=True, text=True, check=False
    )
    return "unexpected" not in asked.stderr


def without_placeholders(text: str, meanings: dict[str, str] | None = None) -> str:
    """Return a command with its <placeholders> filled in: by what they stand for, or by their own names."""
    return re.sub(r"<([a-z][a-z-]*)>", lambda match: (meanings or {}).get(match[1], match[1]), text)
