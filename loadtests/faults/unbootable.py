"""The server's application with workers that fail to boot while a file exists, for `reload_refused`.

A real worker fails in `open`, after the fork and before it serves, for example when a file or package is missing.
"""

import os
from pathlib import Path
from typing import Any, Final

from app.main import Application

PREVENTED: Final = "WORKERS_PREVENTED_BY"  # the variable with the path of that file


class Unbootable(Application):
    """The application, in a worker that does not get far."""

    def open(self, worker: Any) -> None:
        """Begin to serve, unless the file exists."""
        if Path(os.environ[PREVENTED]).exists():
            raise RuntimeError("this worker is prevented from booting")
        super().open(worker)


app = Unbootable()
