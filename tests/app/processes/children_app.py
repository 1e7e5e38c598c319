"""The product with supervised children that a test declares in a file, which is read again at every reload.

    gunicorn -c gunicorn.conf.py tests.app.processes.children_app:app

CHILDREN names a file with a JSON object: name → {"acts": one of ACTS, and members of `Child`}. Each child appends its
pid to the file `NAME.pids` beside it when it begins.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from app import main
from app.processes.child import Access, Child, ChildContext
from app.server import server
from core.startup import Loaded


def _wait(context: ChildContext) -> int:
    while not context.wait(60):
        pass
    return 0


def _follow(context: ChildContext) -> int:
    assert context.memory is not None
    while not context.wait(0.02):
        (_directory() / f"{context.name}.position").write_text(str(context.memory.state().accepted))
    return 0


def _hang(context: ChildContext) -> int:
    context.beat()
    while True:
        signal.pause()


def _grow(context: ChildContext) -> int:
    held = bytearray()
    while not context.wait(0.01):
        held += bytes(10_000_000)
    return 0


def _defy(context: ChildContext) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        context.beat()
        time.sleep(0.02)


def _log_and_exit(_context: ChildContext) -> int:
    log.warning("exits")
    return 7


log = logging.getLogger("mlsdm.children")

ACTS: Final[Mapping[str, Callable[[ChildContext], int]]] = {
    "wait": _wait,
    "follow": _follow,
    "hang": _hang,
    "grow": _grow,
    "defy": _defy,
    "exit": _log_and_exit,
}


def _directory() -> Path:
    return Path(os.environ["CHILDREN"]).parent


def _child(name: str, declared: dict[str, object]) -> Child:
    act = ACTS[str(declared.pop("acts"))]

    def run(context: ChildContext) -> int:
        with (_directory() / f"{name}.pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return act(context)

    return Child(name, run, Access.READ if act is _follow else Access.NONE, **declared)  # type: ignore[arg-type] # JSON


def _children(_loaded: Loaded) -> list[Child]:
    declared = json.loads(Path(os.environ["CHILDREN"]).read_text(encoding="utf-8"))
    return [_child(name, members) for name, members in declared.items()]


server.children_of = _children
app: Final = main.app
