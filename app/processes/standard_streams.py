"""Descriptors 0, 1 and 2, open in every process of the server.

A server can be started with a closed standard stream (`mlsdm serve 1>&-`). The next file that is opened gets its
number, be it the shared block, and whatever prints then writes into it.
"""

import os
import sys


def open_missing_streams() -> None:
    """Open those of the three that are closed on /dev/null. To be called before anything else is opened.

    They are inherited by children, and by the arbiter of an upgrade.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor, inheritable=True)
            if opened != descriptor:
                os.close(opened)
    # Python has None in place of a stream that was closed when it started.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
