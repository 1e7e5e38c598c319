"""`mlsdm serve`: the server in the foreground, as `gunicorn -c gunicorn.conf.py app.main:app` starts it.

Each option (`mlsdm.serve_options`) sets an environment variable and is checked with the rest of the configuration, so
that all problems of a start are listed together. Gunicorn runs in this process through its embedding interface, with
the settings of `app.server`, which are all that gunicorn.conf.py holds. Gunicorn's own options and GUNICORN_CMD_ARGS do
not apply.

Ctrl-C ends it with status 0 at any moment. A terminal sends SIGINT to the whole process group, and every process
handles it; before the arbiter does, `mlsdm.command` turns the KeyboardInterrupt into that status.

Rejected: `gunicorn -c python:MODULE` (a module is executed once, so HUP would not read the configuration again);
a second gunicorn.conf.py as package data; exec of `python -m gunicorn` (it puts the current directory before the
installed packages, and after USR2 Gunicorn's own directory, whose `http` hides the standard library's).
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from app.processes.early_stop import stop_at_sigterm

stop_at_sigterm()
try:
    os.getcwd()
except FileNotFoundError:  # Gunicorn asks for it when it is imported, and its children begin in it
    sys.exit("mlsdm serve: the current directory was removed: change to one that exists")

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]  # noqa: E402 - gunicorn carries no types
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]  # noqa: E402

from app.server import server  # noqa: E402
from mlsdm.serve_options import add_options, to_variables  # noqa: E402


def run(arguments: argparse.Namespace) -> NoReturn:
    """Serve until stopped; Gunicorn exits with its own status."""
    os.environ.update(to_variables(arguments))
    Embedded().run()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm serve`."""
    add_options(parser)


class Embedded(BaseApplication):  # type: ignore[misc]  # the base class is untyped
    """Gunicorn with the settings of `app.server`, read again at every HUP."""

    def load_config(self) -> None:
        """Called at the start and at every HUP; `gunicorn_settings` keeps the old ones when the new are wrong."""
        for name, value in server.gunicorn_settings().items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., Any]:
        """Return the WSGI application."""
        from app.main import app  # noqa: PLC0415 — after the settings, as Gunicorn itself would

        return app

    def run(self) -> NoReturn:
        """Run the arbiter; it exits the process."""
        arbiter = Arbiter(self)
        # USR2 executes these. Gunicorn's choice, `sys.argv`, cannot be executed when this is `python -m mlsdm`.
        arbiter.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]
        arbiter.run()
        raise AssertionError("an arbiter leaves by sys.exit")
