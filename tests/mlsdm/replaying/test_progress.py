"""The line that shows how far a replay is."""

import io
import re

from mlsdm.replaying.connection import Decision
from mlsdm.replaying.ledger import Ledger
from mlsdm.replaying.progress import Progress


def test_progress_redraws_one_line_on_a_terminal_and_writes_plain_lines_elsewhere() -> None:
    """The last state is always shown, and ends its line."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    ledger = Ledger(2, 0)
    ledger.record(0, [Decision(1, True, 0.5, 0.55, 0.55, 1)], 0.001)
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream, 2)
        progress.show(ledger)  # too early for either
        progress.show(ledger, last=True)

    assert re.fullmatch(r"\r\x1b\[K█+░+  1/2 events  [\d,]+/s  θ 0\.550\n", terminal.getvalue())
    assert re.fullmatch(r"1/2 events  [\d,]+/s  θ 0\.550\n", file.getvalue())
