"""The progress of a replay: a bar on a terminal, otherwise a line every five seconds.

It reads the ledger and writes to one stream. It never changes the terminal's settings, so nothing needs restoring.
"""

import shutil
import time
from typing import Final, TextIO

from mlsdm.replaying.ledger import Ledger


class Progress:
    """The progress display: one line redrawn in place on a terminal, otherwise a line every five seconds."""

    REDRAW_SECONDS: Final = 0.1
    LINE_SECONDS: Final = 5.0

    def __init__(self, stream: TextIO, count: int) -> None:
        self._stream = stream
        self._count = count
        self._terminal = stream.isatty()
        self._began = self._shown = time.monotonic()

    def show(self, ledger: Ledger, *, last: bool = False) -> None:
        """Show the state of the ledger if a redraw is due; `last` always shows it and ends the line."""
        now = time.monotonic()
        if not last and now - self._shown < (self.REDRAW_SECONDS if self._terminal else self.LINE_SECONDS):
            return
        self._shown = now
        done = ledger.answered
        theta = f"{ledger.latest.threshold_after:.3f}" if ledger.latest else "–"
        text = f"{done:,}/{self._count:,} events  {done / max(now - self._began, 1e-9):,.0f}/s  θ {theta}"
        if not self._terminal:
            print(text, file=self._stream, flush=True)
            return
        width = max(10, min(40, shutil.get_terminal_size().columns - len(text) - 5))
        filled = width * done // self._count
        bar = "█" * filled + "░" * (width - filled)
        print(f"\r\x1b[K{bar}  {text}", end="\n" if last else "", file=self._stream, flush=True)
