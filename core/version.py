"""The version of the installed distribution `mlsdm`, such as `1.4.0`."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("mlsdm")
