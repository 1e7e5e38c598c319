"""The application of the server, with workers that cannot boot as long as a file says so.

For `reload_refused`: what fails in a real worker (a file that is gone, a package that was replaced) fails in `open`,
after the fork and before it serves.
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
