"""The configuration file: YAML composed into nodes, never constructed into objects.

Only the structure and the scalars' text are taken from YAML; what a scalar means is decided by `core.setting`, whose
grammar is the environment's too. So no tag can build anything, no alias can grow anything (the walk follows the
settings, at most three levels deep, and never the document), and every refusal can name the line.

Refused, each with the line: a file that cannot be read or parsed or is larger than 1 MiB, a key given twice, a key
unknown, a section where a value belongs and the reverse, and a key left empty (`capacity:`), because a lost value
must not pass for a default. An empty file, and an empty section, say nothing and are fine.
"""

import os
import stat
from collections.abc import Mapping

import yaml

from core.setting import Layer, Setting, meant, printable, quoted

# Bytes. The annotated default has 5 kB; a device or a log given by mistake must not be read for ever.
_FILE_SIZE_MAX = 1_048_576
_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def read(path: str, settings: Mapping[str, Setting]) -> Layer:
    """Return what the file at `path` says about `settings` (by dotted key). Problems are reported, never raised."""
    layer = Layer({}, [])
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):  # opened like this, it reads as empty
                layer.note("CONFIG_PATH", f"{_shown(path)} is a FIFO: expected a YAML file")
                return layer
            content = file.read(_FILE_SIZE_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        layer.note("CONFIG_PATH", f"{_shown(path)} cannot be read ({reason}): expected a YAML file")
        return layer
    if len(content) > _FILE_SIZE_MAX:
        layer.note(
            "CONFIG_PATH", f"{_shown(path)} is larger than {_FILE_SIZE_MAX} bytes: expected a configuration file"
        )
        return layer
    try:
        root = yaml.compose(content, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: bytes that are no Unicode
        reason = "nested too deeply" if isinstance(error, RecursionError) else _shown(" ".join(str(error).split()))
        layer.note("CONFIG_PATH", f"{_shown(path)} is not valid YAML ({reason}): expected one mapping")
        return layer
    if root is not None:
        _walk_section(root, "", path, settings, layer)
    return layer


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO that nobody writes to would hold up the arbiter, and every worker's supervision."""
    return os.open(path, flags | os.O_NONBLOCK)


def _walk_section(node: yaml.Node, section: str, path: str, settings: Mapping[str, Setting], layer: Layer) -> None:
    """Take every setting below `section` ("" or "server.") from `node`."""
    if _is_null(node):
        return
    origin = _origin(path, node)
    children = sorted({key[len(section) :].split(".", 1)[0] for key in settings if key.startswith(section)})
    if not isinstance(node, yaml.MappingNode):
        name = section.rstrip(".") or "the file"
        layer.note(name, f"{name} is {_kind(node)} ({origin}): expected a section with {', '.join(children)}")
        return
    seen: dict[str, str] = {}
    for key_node, value_node in node.value:
        origin = _origin(path, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            name = section.rstrip(".") or "the file"
            layer.note(name, f"{name} has {_kind(key_node)} for a key ({origin}): expected a name")
            continue
        key = section + key_node.value
        if key in seen:
            layer.note(key, f"{printable(key)} is given twice ({seen[key]} and {origin}): expected once")
            continue
        seen[key] = origin
        if key in settings:
            _take_setting(value_node, settings[key], origin, layer)
        elif key_node.value in children:
            _walk_section(value_node, key + ".", path, settings, layer)
        else:
            expected = f"expected one of {', '.join(children)}"
            layer.note(key, f"{printable(key)} is unknown ({origin}): {expected}{meant(key, settings)}")


def _take_setting(node: yaml.Node, setting: Setting, origin: str, layer: Layer) -> None:
    wants_text = setting.type not in (bool, int, float)
    if not isinstance(node, yaml.ScalarNode):
        layer.refuse(setting, f"is {_kind(node)}", origin)
    elif _is_null(node):
        layer.refuse(setting, "is empty", origin)
    elif wants_text and node.tag != _TEXT:
        layer.refuse(setting, f"is {printable(node.value)}, which is not text", origin)
    elif not wants_text and node.style is not None:
        layer.refuse(setting, f"is the text {quoted(node.value)}", origin)
    else:
        layer.take(setting, node.value, origin)


def _is_null(node: yaml.Node) -> bool:
    return node.tag == _NULL


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return printable(node.value)


def _origin(path: str, node: yaml.Node) -> str:
    return f"{_shown(path)}, line {node.start_mark.line + 1}"


def _shown(text: str) -> str:
    """Return a path or a parser's reason in full, however long, with what would break the line escaped."""
    return text if text.isprintable() else repr(text)[1:-1]
