"""The subcommands that modules of the platform add to `mlsdm`, for the modules that the configuration enables."""

import os
import sys
from collections.abc import Collection

from app.lifecycle.contract import Command
from app.lifecycle.loader import load_modules
from app.lifecycle.rehearsal import Shortage
from core import startup


def module_commands(taken: Collection[str]) -> list[Command]:
    """Return the commands of every module that can be loaded, without those whose names are `taken`.

    What is left out is named on stderr.
    """
    found: dict[str, Command] = {}
    try:
        modules = load_modules(startup.enabled_modules(None, os.environ, startup.PLACES))
    except Shortage as error:
        print(f"mlsdm: the commands of modules are left out: {error}", file=sys.stderr)
        return []
    for loaded in modules:
        try:
            commands = loaded.module.commands() if loaded.module is not None else ()
        except Exception as error:  # noqa: BLE001 - the other commands work without it
            print(f"mlsdm: the commands of module {loaded.name} are left out: {error}", file=sys.stderr)
            continue
        for command in commands:
            if command.name in taken or command.name in found:
                print(f"mlsdm: the command {command.name} of module {loaded.name} is left out: taken", file=sys.stderr)
            else:
                found[command.name] = command
    return list(found.values())
