"""The configuration file: read once, as a tree of YAML nodes, which `core.settings.decoder` turns into values.

Invariants: a search follows the names of known settings, never the structure of the document, so that its cost does not
depend on what the file holds.
Rejected: a list of all keys and values of the file. A kilobyte of nested YAML aliases would expand to more than the
machine's memory.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from core.settings import yaml_document
from core.settings.setting import SettingProblem
from core.settings.yaml_document import Unreadable


class ConfigFile(NamedTuple):
    """A file that has been read. `root` is None when it is empty, cannot be read, or there is no file."""

    path: str
    root: yaml.Node | None
    problems: tuple[SettingProblem, ...] = ()


NO_FILE = ConfigFile("embedded defaults", None)


def find(path: str | None, config_path: str | None, places: Sequence[str]) -> ConfigFile:
    """Find and read the configuration file. Returns NO_FILE if there is none.

    It is the first of these that is not None: `path`, `config_path` (the variable CONFIG_PATH; "": no file), and the
    first of `places` that exists. Never raises; a file that cannot be read has a problem.
    """
    if path is None:
        path = next(filter(_exists, places), None) if config_path is None else config_path or None
    return NO_FILE if path is None else read(path)


def read(path: str) -> ConfigFile:
    """Return the file at `path`. Never raises; a file that cannot be read has a problem."""
    try:
        return ConfigFile(path, yaml_document.read(path).root)
    except Unreadable as error:
        sentence = f"{yaml_document.escape(path)} {error}: expected a YAML file"
        return ConfigFile(path, None, (SettingProblem("CONFIG_PATH", sentence),))


def find_nodes(node: yaml.Node | None, key: str) -> Iterator[yaml.Node]:
    """Yield the nodes below `node` at a dotted key, in the order of the file.

    There are two when the file has the key in a section and also in dotted form. Of two equal names in one mapping, the
    first counts.
    """
    seen: set[str] = set()
    for name_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(name_node, yaml.ScalarNode) or name_node.value in seen:
            continue
        seen.add(name_node.value)
        if name_node.value == key:
            yield value_node
        elif key.startswith(f"{name_node.value}."):
            yield from find_nodes(value_node, key.removeprefix(f"{name_node.value}."))


def _exists(path: str) -> bool:
    """Return whether a path exists.

    A dangling link counts as existing, and so does a path in a directory that cannot be read, so that `read` reports
    it.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True
