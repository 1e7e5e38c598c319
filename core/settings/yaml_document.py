"""One YAML document: read in bounds, composed into nodes, never constructed into objects.

What the configuration file and the keys file have in common. Only the structure and the scalars' text are taken from
YAML; what a scalar means is decided by who walks the nodes. So no tag can build anything, and no alias can grow
anything, as long as a walk follows what it knows and not the document. Every node knows its line, for the refusals.

What cannot be composed is an `Unreadable`, whose text completes a sentence and quotes no line of the file: it may hold
what must not stand in a log.
"""

import os
import stat
from typing import Final, NamedTuple

import yaml

# Bytes. The annotated configuration has 6 kB and 1,024 keys have 200 kB; a device or a log given by mistake must not be
# read for ever.
SIZE_MAX: Final = 1_048_576
TEXT: Final = "tag:yaml.org,2002:str"
_NULL: Final = "tag:yaml.org,2002:null"


class Unreadable(Exception):
    """Why there is no document, as the rest of a sentence: `cannot be read (Is a directory)`, `is a FIFO`."""


class Document(NamedTuple):
    """A file's content: its root, None when it is empty, and its mode as `stat` has it."""

    root: yaml.Node | None
    mode: int


def read(path: str) -> Document:
    """Return the document in the file at `path`. Raises Unreadable, and nothing else."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
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
    """Return whether nothing is given: `key:`, `~` or `null`."""
    return node.tag == _NULL


def origin(path: str, node: yaml.Node) -> str:
    """Return where a node stands, for an operator."""
    return f"{escape(path)}, line {node.start_mark.line + 1}"


def escape(text: str) -> str:
    """Return a path or a parser's reason in full, however long, with what would break the line escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a FIFO that nobody writes to would hold up the arbiter, and every worker's supervision."""
    return os.open(path, flags | os.O_NONBLOCK)


def _reason(error: Exception) -> str:
    """Return what the parser found, and where. Its own text would quote the line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError):
        return escape(" ".join(str(error).split()))
    found = escape(" ".join(filter(None, (error.context, error.problem))))
    return found if error.problem_mark is None else f"{found}, line {error.problem_mark.line + 1}"
