"""The `mlsdm` command: the table of subcommands, and what they share: help, version, streams, common failures.

A subcommand's module declares its arguments in `add_arguments` and works in `run`, which returns the exit status. An
operator's mistake ends in one sentence on stderr, never in a traceback.

Only the module of the chosen subcommand is imported, inside the `try` that handles Ctrl-C and a missing native core:
`mlsdm --help` answers at once and works on a machine where nothing else does.

Exit status: 0 done; 1 failed, with a sentence; 2 wrong usage; 130 or 141 after Ctrl-C or a closed pipe, as shells
report them. A subcommand that Ctrl-C ends normally (`serve`, `stat`) returns 0. A closed standard output or error is a
failure before anything is done, except for `serve`: what is printed may be the only copy, such as that of a token.
"""

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, cast

from app.processes.standard_streams import open_missing_streams

WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE


class Module(Protocol):
    """The interface of a subcommand's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the subcommand."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the subcommand and return the exit status."""


class Command(NamedTuple):
    """One subcommand: its name, its module, a summary line, and examples. `interrupted` is its status after Ctrl-C."""

    name: str
    module: str
    summary: str
    interrupted: int
    examples: str


COMMANDS: Final = (
    Command(
        "serve",
        "mlsdm.commands.serve",
        "run the server in the foreground until Ctrl-C or SIGTERM",
        0,
        """\
  mlsdm serve
  mlsdm serve --port 9000 --workers 2
  MLSDM_ENV=production API_KEY=… mlsdm serve --host 0.0.0.0 --config config/production-ready.yaml""",
    ),
    Command(
        "check-config",
        "mlsdm.commands.check_config",
        "check whether a configuration file is valid, without starting anything",
        INTERRUPTED,
        """\
  mlsdm check-config config/default.yaml
  MLSDM_ENV=production mlsdm check-config -v config/production-ready.yaml
  mlsdm check-config --against $(cat mlsdm.pid) mlsdm.yaml""",
    ),
    Command(
        "key",
        "mlsdm.commands.key",
        "make a key for a client: the token, and the entry for the keys file",
        INTERRUPTED,
        """\
  echo keys: > keys.yaml
  mlsdm key web >> keys.yaml
  mlsdm key loader --role write --tier bulk --expires 2027-01-31 --token loader.token >> keys.yaml""",
    ),
    Command(
        "stat",
        "mlsdm.commands.stat",
        "print the state of a running server from its shared memory, without HTTP",
        0,
        """\
  mlsdm stat
  mlsdm stat --watch 1
  mlsdm stat --pid 4711 --json | jq .state.threshold""",
    ),
    Command(
        "modules",
        "mlsdm.commands.modules",
        "show the modules of a running server, and why one is not ready",
        INTERRUPTED,
        """\
  mlsdm modules
  API_KEY=… mlsdm modules --url https://mlsdm.example.com --json""",
    ),
    Command(
        "replay",
        "mlsdm.commands.replay",
        "send the events of an .npz file to a running server, and compare the counters of both sides",
        INTERRUPTED,
        """\
  mlsdm replay events.npz
  mlsdm replay events.npz --clients 1 --save decisions.npz --plot threshold.png
  mlsdm replay banking.npz --vectors train --moral-value 1.0 --batch 100""",
    ),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line `words` (default: that of the process) and return the exit status."""
    closed = [name for name, stream in (("output", sys.stdout), ("error", sys.stderr)) if stream is None]
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # θ and █ must not fail on a terminal without Unicode
    words = sys.argv[1:] if words is None else words
    # No option before the subcommand takes a value, so the first word without a dash is the subcommand.
    name = next((word for word in words if not word.startswith("-")), None)
    command = next((command for command in COMMANDS if command.name == name), None)
    if closed and name != "serve":
        print(f"mlsdm: standard {closed[0]} is closed: expected a file, a pipe or /dev/null", file=sys.stderr)
        return 1
    try:
        status = _run(words, command, name)
        sys.stdout.flush()  # inside the try, so that a closed pipe is handled
    except KeyboardInterrupt:
        return command.interrupted if command else INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        if error.errno == errno.EPIPE:
            return PIPE_CLOSED
        print(
            f"mlsdm: cannot write the output ({error.strerror}): free some space, or write elsewhere", file=sys.stderr
        )
        return 1
    except ImportError as error:
        if error.name != "shm._native":
            raise
        print(
            f"mlsdm: the native core cannot be loaded ({error}): build it with `make`, which needs a C compiler "
            "(apt-get install gcc libc6-dev), or install the package again",
            file=sys.stderr,
        )
        return 1
    return status


def _run(words: Sequence[str], named: Command | None, name: str | None) -> int:
    from importlib.metadata import version  # noqa: PLC0415 — slow to import, so inside the try that handles Ctrl-C

    parser = argparse.ArgumentParser(
        "mlsdm",
        description="A governed memory server: run it, inspect it, and try it out.",
        epilog="examples:\n" + "\n".join(command.examples for command in COMMANDS)
        + "\n\n`mlsdm COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"mlsdm {version('mlsdm')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    module: Module | None = None
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command is named:
            module = cast(Module, importlib.import_module(command.module))
            module.add_arguments(subparser)
    if named is None and name is not None:
        from mlsdm.module_commands import module_commands  # noqa: PLC0415 - reads the configuration

        for offered in module_commands({command.name for command in COMMANDS}):
            subparser = subparsers.add_parser(offered.name, help=offered.summary)
            offered.add_arguments(subparser)
            subparser.set_defaults(run=offered.run)
    arguments = parser.parse_args(words)
    if "run" in arguments:
        status: int = arguments.run(arguments)
        return status
    if module is None:
        parser.print_help()
        return WRONG_USAGE
    return module.run(arguments)
