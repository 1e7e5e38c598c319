"""The options of `mlsdm serve`: each sets a variable of the configuration, so it wins over the file at a HUP, too."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Final

from core.startup import PLACES

VARIABLES: Final = {"host": "HOST", "port": "PORT", "workers": "WORKERS", "config": "CONFIG_PATH"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (variable HOST; default: 127.0.0.1)")
    parser.add_argument("--port", metavar="PORT", help="TCP port (variable PORT; default: 8000)")
    parser.add_argument("--workers", metavar="N", help="worker processes (variable WORKERS; default: one per core)")
    parser.add_argument(
        "--config",
        metavar="PATH",
        help=f"YAML file (variable CONFIG_PATH; default: {PLACES[0]} if it exists, else built-in values)",
    )


def to_variables(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the variables that the options set."""
    values = {variable: getattr(arguments, option) for option, variable in VARIABLES.items()}
    return {variable: value for variable, value in values.items() if value is not None}


def variables_of_command(words: Sequence[str]) -> Mapping[str, str]:
    """Return the variables that a command line sets: none, unless it is one of `mlsdm serve`."""
    if "serve" not in words:
        return {}
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    return to_variables(parser.parse_known_args(words[words.index("serve") + 1 :])[0])
