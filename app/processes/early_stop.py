"""SIGTERM while the server starts.

Gunicorn installs its handlers late in its start. Until then SIGTERM has its default action, which ends a process
without a word, and which the kernel withholds from the first process of a container (pid_namespaces(7)): the signal
would be lost, and the container killed at the end of its grace period.
"""

import signal
import sys
from types import FrameType


def stop_at_sigterm() -> None:
    """Have SIGTERM end this process with status 0, unless it has a handler already. Call it before slow imports."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    print("mlsdm is stopped while it starts", file=sys.stderr)
    sys.exit(0)
