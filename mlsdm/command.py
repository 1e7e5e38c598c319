"""The `mlsdm` command: one word for each thing an operator does, each word a module of this package.

This file owns the table of commands and what they have in common: help, version, the streams, and the failures that
any of them can meet. A command's module declares its arguments in `add_arguments` and does its work in `run`, which
returns the exit status; whatever an operator can cause ends in one sentence on stderr, never in a traceback.

Only the module of the command that was named is imported, inside the same `try` that catches Ctrl-C and a native core
that was not built: `mlsdm --help` answers at once, and works on a machine where nothing else does.

Exit status: 0 done; 1 failed, with a sentence; 2 the command line is wrong; 130 or 141 ended by Ctrl-C or by a reader
that closed the pipe, as shells report them. For a command that Ctrl-C ends in order, that is 0.
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

WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE


class Module(Protocol):
    """What a command's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the command."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


class Command(NamedTuple):
    """One command: its word, the module behind it, a line for the overview, and examples to paste.

    `interrupted` is the exit status after Ctrl-C.
    """

    name: str
    module: str
    summary: str
    interrupted: int
    examples: str


COMMANDS: Final = (
    Command(
        "serve",
        "mlsdm.commands.serve",
        "start the server and stay with it until Ctrl-C or SIGTERM",
        0,
        """\
  mlsdm serve
  mlsdm serve --port 9000 --workers 2
  MLSDM_ENV=production API_KEY=… mlsdm serve --host 0.0.0.0 --config config/production-ready.yaml""",
    ),
    Command(
        "check-config",
        "mlsdm.commands.check_config",
        "say whether a configuration file is valid, without starting anything",
        INTERRUPTED,
        """\
  mlsdm check-config config/default.yaml
  MLSDM_ENV=production mlsdm check-config -v config/production-ready.yaml""",
    ),
    Command(
        "key",
        "mlsdm.commands.key",
        "make a key for a client: the token, and the entry of the keys file",
        INTERRUPTED,
        """\
  echo keys: > keys.yaml
  mlsdm key web >> keys.yaml
  mlsdm key loader --role write --tier bulk --expires 2027-01-31 >> keys.yaml 2> loader.token""",
    ),
    Command(
        "stat",
        "mlsdm.commands.stat",
        "look into the memory of a running server, without asking it",
        0,
        """\
  mlsdm stat
  mlsdm stat --watch 1
  mlsdm stat --pid 4711 --json | jq .state.threshold""",
    ),
    Command(
        "replay",
        "mlsdm.commands.replay",
        "send the events of an .npz file to a running server, and compare what both of them counted",
        INTERRUPTED,
        """\
  mlsdm replay events.npz
  mlsdm replay events.npz --clients 1 --save decisions.npz --plot threshold.png
  mlsdm replay banking.npz --vectors train --moral-value 1.0 --batch 100""",
    ),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that `words` spell, those of the process unless given; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # θ and █ on a terminal without Unicode are no reason to fail
    words = sys.argv[1:] if words is None else words
    # No option that stands before the command takes a value, so the first word without a dash is the command.
    name = next((word for word in words if not word.startswith("-")), None)
    command = next((command for command in COMMANDS if command.name == name), None)
    try:
        status = _run(words, command)
        sys.stdout.flush()  # here, where a closed pipe is still caught
    except KeyboardInterrupt:
        return command.interrupted if command else INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        if error.errno == errno.EPIPE:
            return PIPE_CLOSED
        print(f"mlsdm: the output cannot be written ({error.strerror}): make room, or write elsewhere", file=sys.stderr)
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


def _run(words: Sequence[str], named: Command | None) -> int:
    from importlib.metadata import version  # noqa: PLC0415 — slow to import, so where Ctrl-C is caught

    parser = argparse.ArgumentParser(
        "mlsdm",
        description="A governed memory server: serve, look after it, and try it out.",
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
    arguments = parser.parse_args(words)
    if module is None:
        parser.print_help()
        return WRONG_USAGE
    return module.run(arguments)
