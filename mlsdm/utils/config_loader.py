"""The door that operators' scripts know: `ConfigLoader.load_config(PATH)`, before a configuration is rolled out.

It owns nothing but the name. What is judged, and by what, is `mlsdm.check_config.judged`, and so what a server would
say at its start in this environment; a missing API_KEY is no problem here either. A script that ignores what is
returned learns from an exception that the file is wrong, and from its text everything that is.

What comes back is a tree of plain values that is complete, defaults and overlay included, with the names of the file.
Rejected: the file's own text as a dict, in which a setting may be missing, or be spelled in four ways.
"""

import os
from typing import Any

from core.settings.config import effective
from mlsdm.commands.check_config import judged


class ConfigLoader:
    """A class because scripts call it as one; it holds nothing."""

    @staticmethod
    def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return every setting that would be in force with the file at `path`, as nested dicts of plain values.

        Raises core.startup.ConfigurationError, whose text has one line for each problem.
        """
        return effective(judged(os.fspath(path), os.environ).config)
