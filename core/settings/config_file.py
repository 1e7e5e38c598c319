"""The configuration file: read once as YAML, then searched for settings.

The search follows the settings, which are at most five levels deep, and never the document, so its cost does not
depend on what the file holds. It passes each scalar's text to `Setting.parse`, which the variables use too.

Refused, each with its line: a file that `core.settings.yaml_document` cannot compose, an unknown key, a key given
twice, a section in place of a value and the reverse, and a key without a value (`capacity:`), because a lost value must
not pass for a default. An empty file and an empty section are valid and set nothing; `keys_path: ""` sets a text.
"""

from collections.abc import Mapping
from typing import NamedTuple

import yaml

from core.settings import yaml_document
from core.settings.setting import Layer, Setting, SettingProblem, quote_if_needed, quoted, suggestion
from core.settings.yaml_document import Unreadable


class ConfigFile(NamedTuple):
    """A file that has been read. `root` is None when it is empty, cannot be read, or there is no file."""

    path: str
    root: yaml.Node | None
    problems: tuple[SettingProblem, ...] = ()


NO_FILE = ConfigFile("embedded defaults", None)


def read(path: str) -> ConfigFile:
    """Return the file at `path`. Never raises; a file that cannot be read has a problem."""
    try:
        return ConfigFile(path, yaml_document.read(path).root)
    except Unreadable as error:
        sentence = f"{yaml_document.escape(path)} {error}: expected a YAML file"
        return ConfigFile(path, None, (SettingProblem("CONFIG_PATH", sentence),))


def find_values(file: ConfigFile, settings: Mapping[str, Setting]) -> Layer:
    """Return the values that `file` gives `settings` (by dotted key), and the problems of its content."""
    layer = Layer({}, [])
    if file.root is not None:
        _read_section(file.root, "", file.path, settings, layer)
    return layer


def _read_section(node: yaml.Node, section: str, path: str, settings: Mapping[str, Setting], layer: Layer) -> None:
    """Read every setting below `section` ("" or "server.") from `node`."""
    if yaml_document.is_null(node):
        return
    origin = yaml_document.origin(path, node)
    children = sorted({key[len(section) :].split(".", 1)[0] for key in settings if key.startswith(section)})
    if not isinstance(node, yaml.MappingNode):
        name = section.rstrip(".") or "the file"
        layer.report(name, f"{name} is {_kind(node)} ({origin}): expected a section with {', '.join(children)}")
        return
    seen: dict[str, str] = {}
    for key_node, value_node in node.value:
        origin = yaml_document.origin(path, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            name = section.rstrip(".") or "the file"
            layer.report(name, f"{name} has {_kind(key_node)} for a key ({origin}): expected a name")
            continue
        key = section + key_node.value
        if key in seen:
            layer.report(key, f"{quote_if_needed(key)} is given twice ({seen[key]} and {origin}): expected once")
            continue
        seen[key] = origin
        if key in settings:
            _read_setting(value_node, settings[key], origin, layer)
        elif key_node.value in children:
            _read_section(value_node, key + ".", path, settings, layer)
        else:
            expected = f"expected one of {', '.join(children)}"
            layer.report(key, f"{quote_if_needed(key)} is unknown ({origin}): {expected}{suggestion(key, settings)}")


def _read_setting(node: yaml.Node, setting: Setting, origin: str, layer: Layer) -> None:
    wants_text = setting.type not in (bool, int, float)
    if not isinstance(node, yaml.ScalarNode):
        layer.reject(setting, f"is {_kind(node)}", origin)
    elif yaml_document.is_null(node):
        layer.reject(setting, "is empty", origin)
    elif wants_text and node.tag != yaml_document.TEXT:
        layer.reject(setting, f"is {quote_if_needed(node.value)}, which is not text", origin)
    elif not wants_text and node.style is not None:
        layer.reject(setting, f"is the text {quoted(node.value)}", origin)
    else:
        layer.parse(setting, node.value, origin)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return quote_if_needed(node.value)
