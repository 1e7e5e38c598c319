"""YAML documents: read within bounds and composed into nodes; scalars written so that they read back.

The configuration file and the keys file use it. YAML gives the structure and the text of the scalars; the caller
decides what a scalar means. So no tag can construct an object. No alias can expand either, as long as the caller looks
up known names and does not follow the document. Every node has its line, for refusals.

An `Unreadable` says why there is no document. Its text quotes no line of the file, which may hold a secret.
"""

import math
import os
import stat
from typing import Final, NamedTuple

import yaml

from core.settings.setting import Value

# Bytes. The annotated configuration has 6 kB, 1,024 keys have 200 kB. A device or a log that is named by mistake must
# not be read without end.
SIZE_MAX: Final = 1_048_576
TEXT: Final = "tag:yaml.org,2002:str"
_NULL: Final = "tag:yaml.org,2002:null"


class Unreadable(Exception):
    """Why there is no document. `str()` is the finding that follows the path: `is a FIFO`, `cannot be read (…)`."""


class Document(NamedTuple):
    """The content of a file: its root (None when it is empty) and its mode (`stat.st_mode`)."""

    root: yaml.Node | None
    mode: int


def read(path: str) -> Document:
    """Return the document in the file at `path`. Raises nothing but Unreadable."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(mode):  # opened like this, it reads as empty
                raise Unreadable("is a FIFO")
            content = file.read(SIZE_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unreadable(f"cannot be read ({reason})") from error
    if len(content) > SIZE_MAX:
        raise Unreadable(f"is larger than {SIZE_MAX} bytes")
    try:
        return Document(yaml.compose(content, yaml.SafeLoader), mode)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: bytes that are no Unicode
        raise Unreadable(f"is not valid YAML ({_reason(error)})") from error


def is_null(node: yaml.Node) -> bool:
    """Return whether a node has no value: `key:`, `~` or `null`."""
    return node.tag == _NULL


def to_yaml_scalar(value: Value) -> str:
    """Return `value` as a document has it, texts in quotes where they would otherwise read as something else."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str) or _is_plain(value):
        return str(value)
    quoted: str = yaml.safe_dump(value, default_style='"', width=math.inf)
    return quoted.rstrip("\n")


def _is_plain(text: str) -> bool:
    """Return whether `text` reads back as itself without quotes."""
    try:
        root = yaml.compose(f"key: {text}", yaml.SafeLoader)
    except yaml.YAMLError:
        return False
    assert isinstance(root, yaml.MappingNode)
    node = root.value[0][1]
    return isinstance(node, yaml.ScalarNode) and (node.tag, node.style, node.value) == (TEXT, None, text)


def origin(path: str, node: yaml.Node) -> str:
    """Return the place of a node for an operator: path and line."""
    return f"{escape(path)}, line {node.start_mark.line + 1}"


def escape(text: str) -> str:
    """Return a path or a parser's reason in full, and escape characters that would break the line."""
    return text if text.isprintable() else repr(text)[1:-1]


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file. Opening a FIFO without a writer would otherwise block the arbiter, which supervises the workers."""
    return os.open(path, flags | os.O_NONBLOCK)


def _reason(error: Exception) -> str:
    """Return what the parser found and its line. The parser's own text would quote the line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError):
        return escape(" ".join(str(error).split()))
    found = escape(" ".join(filter(None, (error.context, error.problem))))
    return found if error.problem_mark is None else f"{found}, line {error.problem_mark.line + 1}"
