"""The subcommands that modules of the platform add to `mlsdm`, for the modules that the configuration enables."""

import os

from app.lifecycle.contract import Command
from app.lifecycle.loader import load_modules
from core import startup


def module_commands() -> list[Command]:
    """Return the commands of every module that can be loaded."""
    names = startup.enabled_modules(None, os.environ, startup.PLACES)
    return [command for one in load_modules(names) if one.module is not None for command in one.module.commands()]
