"""Listening sockets that the arbiter has inherited: from a service manager, or from the arbiter that it replaces.

An upgrade (USR2) passes the sockets of the old arbiter by their descriptors, whoever has opened them. Gunicorn alone
cannot: it passes those of systemd by numbers that it has closed, looks for the descriptor of `--bind fd://N` again,
which it has closed, too, and cannot read an empty list (`--reuse-port`).

Invariants: the path of a Unix socket belongs to whoever made it. An arbiter that was given its sockets, and those that
replace it, leave the path alone when they end.
"""

from collections.abc import MutableMapping
from typing import Any, Final, Protocol

from gunicorn.sock import create_sockets  # type: ignore[import-untyped]  # gunicorn carries no types

INHERITED_VARIABLE: Final = "_MLSDM_INHERITED_SOCKETS"  # 1: the sockets are those of a service manager
_DESCRIPTORS: Final = "GUNICORN_FD"  # how Gunicorn names them to the next arbiter


class Arbiter(Protocol):
    """What is used of Gunicorn's arbiter."""

    LISTENERS: list[Any]
    cfg: Any
    log: Any
    systemd: bool  # its sockets are not its own: their paths stay, and GUNICORN_FD is not set


class _WithoutAddresses:
    """The settings of Gunicorn, with no address to listen on."""

    address: Final = ()

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


def pass_sockets(arbiter: Arbiter) -> None:
    """Have Gunicorn name all sockets by their descriptors. Call it in the fork that becomes the next arbiter."""
    arbiter.systemd = False


def take_sockets(arbiter: Arbiter, environ: MutableMapping[str, str]) -> None:
    """Listen on the sockets of the replaced arbiter. Call it in `on_starting`. Raises OSError and ValueError."""
    descriptors = [int(number) for number in environ.get(_DESCRIPTORS, "").split(",") if number]
    if descriptors:
        arbiter.LISTENERS = create_sockets(_WithoutAddresses(arbiter.cfg), arbiter.log, descriptors)
        del environ[_DESCRIPTORS]
    else:  # --reuse-port: the workers open them
        environ[_DESCRIPTORS] = "0"  # Gunicorn reads a number, and uses it for nothing
