"""`ConfigLoader.load_config(PATH)`: the import that operators' scripts use to check a configuration before a rollout.

It applies `mlsdm.commands.check_config.load_as_server`, so it agrees with a server's start in this environment, except
that a missing API_KEY is no problem. An invalid file raises, and the exception's text lists every problem.

Returns a complete tree of plain values, defaults and overlay included, with the names of the file.
Rejected: the file's own text as a dict, in which settings may be missing or written in four ways.
"""

import os
from typing import Any

from core.settings.config import effective
from mlsdm.commands.check_config import load_as_server


class ConfigLoader:
    """A class without state, because scripts call it as a class."""

    @staticmethod
    def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return every setting that would be in force with the file at `path`, as nested dicts of plain values.

        Raises core.startup.ConfigurationError, whose text has one line for each problem.
        """
        return effective(load_as_server(os.fspath(path), os.environ).config)
