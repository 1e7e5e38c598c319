"""`mlsdm check-config PATH`: reports whether a server would start with this file in this environment; starts nothing.

The file, its overlay (`MLSDM_ENV`), the variables and the keys file are checked by the code that reads them at a start,
so the two cannot disagree. One thing is left out: API_KEY. A pipeline that checks a ConfigMap does not have the secret,
so a placeholder replaces a missing key, and a note says so. Expired keys are noted too. Required modules are imported;
what they declare is not asked.

With `--against PID` it reports whether a HUP of that server would put the file into force (`mlsdm.running_server`): it
reads the file with the variables, and in the directory, of the server, and compares the settings that need a restart.
A module's settings that need one are not compared, and its own checks of a reload are not made.

The verdict and the output of -v go to stdout; problems and notes go to stderr. Exit status: 0 valid, 1 invalid or, with
`--against`, refused by a HUP.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from contextlib import chdir, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from app.lifecycle.loader import FoundModule, load_modules, problems_of, rehearse_settings, sections_of
from app.lifecycle.rehearsal import Rehearsals
from core import startup
from core.settings import config_file, environment, module_names
from core.settings.yaml_document import to_yaml_scalar
from core.startup import FoundSections

if TYPE_CHECKING:
    from mlsdm.running_server import RunningServer

_STAND_IN: Final = {"API_KEY": "*" * startup.API_KEY_LENGTH_MIN}


def run(arguments: argparse.Namespace) -> int:
    """Check a file as the arguments say; return the exit status."""
    environ: Mapping[str, str] = os.environ
    path: str = arguments.path
    running: RunningServer | None = None
    if arguments.against is not None:
        # Only here: the block needs the native core, and a check without a server works in a checkout without it.
        from mlsdm.running_server import NoServer, find_server  # noqa: PLC0415

        try:
            running = find_server(arguments.against)
        except NoServer as error:
            print(f"mlsdm check-config: {error}", file=sys.stderr)
            return 1
        path, environ = os.path.abspath(path), running.environ
    has_api_key = not _is_keyless(environ)
    keyless = running is None and not has_api_key  # the variables of a server are all known
    try:
        with chdir(running.directory) if running is not None else nullcontext():
            loaded = load_as_server(path, environ) if running is None else _load(path, environ)
    except startup.ConfigurationError as error:
        print(f"Configuration invalid, {_counted(len(error.problems), 'problem')}:\n{error}", file=sys.stderr)
        return 1
    keys_path = loaded.config.security.keys_path
    if running is not None and (problems := _hup_problems(loaded, running)):
        print(f"HUP would be refused, {_counted(len(problems), 'problem')}:", *problems, sep="\n", file=sys.stderr)
        return 1
    print("Configuration valid" if running is None else f"Configuration valid; {_verdict(loaded, running)}")
    if running is not None and (note := _other_file(path, running)):
        print(f"note: {note}", file=sys.stderr)
    if keys_path:
        print(f"{_counted(len(loaded.keyring) - (has_api_key or keyless), 'key')} in {keys_path}")
    if arguments.verbose:
        whose = "this environment" if running is None else "the server"
        print(f"# {loaded.source} in {loaded.environment}, with the variables of {whose}")
        for key, value in loaded.values().items():
            print(f"{key}: {to_yaml_scalar(value)}")
    if keyless and loaded.environment == "production" and not keys_path:
        print("note: API_KEY is not set here; without it a production server refuses to start", file=sys.stderr)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if expired := loaded.keyring.expired(time.time()):
        print(f"note: {_counted(len(expired), 'key')} expired: {', '.join(expired)}", file=sys.stderr)
    return 0


def _verdict(loaded: startup.Loaded, running: "RunningServer") -> str:
    """Return what a server does at HUP with a configuration without problems; it alone knows whether it has keys."""
    unless = ", unless it has keys: there are none in this one" if loaded.keyring.is_open else ""
    return f"process {running.pid} accepts it at HUP{unless}"


def _hup_problems(loaded: startup.Loaded, running: "RunningServer") -> list[str]:
    """Return why a running server would refuse a configuration that is valid for a start."""
    problems = [*startup.unreloadable(running.fixed, loaded).values()]
    listens_on = ", ".join(f"{address} port {port}" for address, port in sorted(running.listens_on))
    problems += [
        f"{key} cannot change to {loaded.values()[key]} while the server runs, because it listens on {listens_on}: "
        "restart it"
        for key in running.differs_in_address(loaded.config)
    ]
    return problems + startup.too_many_workers(loaded.config, running.rows)


def _other_file(path: str, running: "RunningServer") -> str:
    """Return a sentence if the server reads another file at HUP, "" if it reads this one."""
    read = config_file.find(None, environment.read(running.environ).config_path, startup.PLACES).path
    if os.path.realpath(running.directory / read) == os.path.realpath(path):
        return ""
    return f"process {running.pid} reads {read} at HUP, not this file"


def load_as_server(path: str, environ: Mapping[str, str]) -> startup.Loaded:
    """Return what a server would load from the file at `path`. Raises ConfigurationError, with every problem.

    Without an API_KEY, a stand-in takes its place: a secret may be absent where a file is checked.
    """
    return _load(path, {**environ, **(_STAND_IN if _is_keyless(environ) else {})})


def _load(path: str, environ: Mapping[str, str]) -> startup.Loaded:
    rehearsals = Rehearsals()
    modules: list[FoundModule] = []

    def find_sections(enabled: tuple[str, ...]) -> FoundSections:
        modules[:] = load_modules(enabled, rehearsals)
        return sections_of(modules)

    loaded = startup.load(path, environ, sections_of=find_sections, rehearse=partial(rehearse_settings, rehearsals))
    if problems := problems_of(modules, module_names.parse(loaded.config.modules.required)):
        raise startup.ConfigurationError(problems)
    return loaded


def _is_keyless(environ: Mapping[str, str]) -> bool:
    return not environ.get("API_KEY", "").strip()


def _pid(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the id of a process")
    return int(text)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm check-config`."""
    parser.add_argument("path", metavar="PATH", help="the YAML file; MLSDM_ENV and MLSDM_* variables apply to it")
    parser.add_argument(
        "--against",
        metavar="PID",
        type=_pid,
        help="a process of a running server: would it accept the file at HUP? Its variables apply, not those of here",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also print every setting as it would be in force")
