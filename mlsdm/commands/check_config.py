"""`mlsdm check-config PATH`: reports whether a server would start with this file in this environment; starts nothing.

The file, its overlay (`MLSDM_ENV`), the variables and the keys file are checked by the code that reads them at a start,
so the two cannot disagree. One thing is left out: API_KEY. A pipeline that checks a ConfigMap does not have the secret,
so a placeholder replaces a missing key, and a note says so. Expired keys are noted too.

The verdict and the output of -v go to stdout; problems and notes go to stderr. Exit status: 0 valid, 1 invalid.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from app.lifecycle.loader import load_modules, rehearse_settings, sections_of
from app.lifecycle.rehearsal import Rehearsals
from core import startup
from core.settings.yaml_document import to_yaml_scalar

_STAND_IN: Final = {"API_KEY": "*" * startup.API_KEY_LENGTH_MIN}


def run(arguments: argparse.Namespace) -> int:
    """Check a file as the arguments say; return the exit status."""
    keyless = _is_keyless(os.environ)
    try:
        loaded = load_as_server(arguments.path, os.environ)
    except startup.ConfigurationError as error:
        print(f"Configuration invalid, {_counted(len(error.problems), 'problem')}:\n{error}", file=sys.stderr)
        return 1
    keys_path = loaded.config.security.keys_path
    print("Configuration valid")
    if keys_path:
        print(f"{_counted(len(loaded.keyring) - 1, 'key')} in {keys_path}")  # the other one is API_KEY
    if arguments.verbose:
        print(f"# {loaded.source} in {loaded.environment}, with the variables of this environment")
        for key, value in loaded.values().items():
            print(f"{key}: {to_yaml_scalar(value)}")
    if keyless and loaded.environment == "production" and not keys_path:
        print("note: API_KEY is not set here; without it a production server refuses to start", file=sys.stderr)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if expired := loaded.keyring.expired(time.time()):
        print(f"note: {_counted(len(expired), 'key')} expired: {', '.join(expired)}", file=sys.stderr)
    return 0


def load_as_server(path: str, environ: Mapping[str, str]) -> startup.Loaded:
    """Return what a server would load from the file at `path`. Raises ConfigurationError, with every problem."""
    variables = {**environ, **(_STAND_IN if _is_keyless(environ) else {})}
    rehearsals = Rehearsals()
    return startup.load(
        path,
        variables,
        sections_of=lambda enabled: sections_of(load_modules(enabled, rehearsals)),
        rehearse=partial(rehearse_settings, rehearsals),
    )


def _is_keyless(environ: Mapping[str, str]) -> bool:
    return not environ.get("API_KEY", "").strip()


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm check-config`."""
    parser.add_argument("path", metavar="PATH", help="the YAML file; MLSDM_ENV and MLSDM_* variables apply to it")
    parser.add_argument("-v", "--verbose", action="store_true", help="also print every setting as it would be in force")
