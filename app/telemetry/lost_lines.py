"""The number of log lines that the processes of a server have lost together.

Owns: one eventfd, which every process that its maker forks inherits.

Invariants: the kernel adds, so no line is counted twice or forgotten, whichever process dies meanwhile. Nothing is
raised: counting must not make a caller of `logging` fail. A read of the descriptor would set the count back to 0, so
the count is read from /proc.
Rejected: a word of shared memory, whose increments by several processes get lost; one word for each process, which
needs a place for processes that come and go.
"""

import os
from contextlib import suppress
from pathlib import Path

_MEMBER = "eventfd-count:"  # proc_pid_fdinfo(5); hexadecimal


class LostLines:
    """Counts lost lines for this process and its forks."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def add(self) -> None:
        """Count one line."""
        with suppress(OSError):
            os.eventfd_write(self.descriptor, 1)

    @property
    def count(self) -> int | None:
        """The number of lost lines so far. None when it cannot be read, for want of descriptors."""
        return lost_lines_of("self", self.descriptor)


def lost_lines_of(process: int | str, descriptor: int) -> int | None:
    """Return the count behind a descriptor of a process (a pid, or `self`). None when it cannot be read."""
    try:
        text = Path(f"/proc/{process}/fdinfo/{descriptor}").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.removeprefix(_MEMBER), 16) for line in text.splitlines() if line.startswith(_MEMBER)), None)
