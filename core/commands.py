"""Commands to the governor: the one way in which a process asks the controller to change it.

A command is posted into the command slot of the block, carried out by the controller between two decisions, and is an
entry of the log. All processes share one slot, so posting is tried again while another command is pending.

Invariants: a command that is not carried out within COMMAND_WAIT_MILLISECONDS is withdrawn under the lock, so `Taken`
means that nothing was changed and nothing will be. The outcome is unknown only if the store is stuck and the command
cannot be withdrawn.

Threading: blocks its caller for up to that time, three times as long if the store is stuck. Never call it on a worker's
loop.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from core.limits import COMMAND_WAIT_MILLISECONDS, DECISIONS_PAGE
from shm.errors import StoreError, Taken
from shm.layout import KINDS
from shm.records import SettingsPointer, State
from shm.store import Store, settings_checksum

_POLL_SECONDS: Final = 0.005
_WAIT_SECONDS: Final = COMMAND_WAIT_MILLISECONDS.value / 1e3
_T = TypeVar("_T")
_COMMANDS: Final = ("configure", "reset", "stop", "resume")  # kinds of log entries; nothing else makes one of these


class OutcomeUnknown(Exception):
    """A command was posted, but it is unknown whether it was carried out, and it could not be withdrawn."""


class _Posted(NamedTuple):
    """A command in the slot: its ticket, and the log position after which it was posted."""

    ticket: int
    after: int


def carry_out(store: Store, kind: str, settings: Callable[[State], SettingsPointer | None]) -> tuple[State, int | None]:
    """Have the controller carry out a command.

    Returns the state after the command, or a later one, and the log position of the command; None when the log does not
    hold it any more.

    `settings(state)` makes the settings of a configure from the state that they are to replace; it is called again when
    another command was carried out in between. `store` belongs to the caller's thread. Raises Taken when the command
    was not carried out in time and never will be, OutcomeUnknown when it may have been or may still be.
    """
    deadline = time.monotonic() + _WAIT_SECONDS

    def post() -> _Posted:
        state = store.state()
        after = int(state.position)
        return _Posted(store.post_command(kind, settings(state), after=int(state.ticket)), after)

    posted = _retry(post, Taken, deadline)
    while True:
        try:
            state = store.state()
            if state.ticket >= posted.ticket:
                return state, _position(store, posted, state)
            if time.monotonic() > deadline and store.withdraw_command(posted.ticket):
                break
        except StoreError as error:  # the command is posted, so from here on it may have been applied
            if time.monotonic() > 2 * _WAIT_SECONDS + deadline:
                raise OutcomeUnknown from error
        time.sleep(_POLL_SECONDS)
    raise Taken


def post_configured(store: Store, settings: SettingsPointer) -> None:
    """Post the settings that the configuration asks for, unless it asked for the same ones before; do not wait.

    They are compared with a checksum in the block and not with what was loaded last: a reload that failed here, an
    upgrade, or a rollback may have left others in force. What an operator has changed while the server runs (PATCH
    /governor) holds until the configuration of the governor changes.
    Raises StoreError when they could not be posted in time.
    """
    configured = settings_checksum(settings)

    def post() -> None:
        state = store.state()
        if store.command_pending():
            raise Taken("another command is pending")  # it may be one of an earlier configuration
        if state.configured != configured:
            store.post_command("configure", settings, configured, state.ticket)

    _retry(post, StoreError, time.monotonic() + _WAIT_SECONDS)


def _retry(post: Callable[[], _T], transient: type[StoreError], deadline: float) -> _T:
    """Return what `post` returns; while it raises `transient`, try again until the deadline, then raise that."""
    while True:
        try:
            return post()
        except transient:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _position(store: Store, posted: _Posted, state: State) -> int | None:
    """Return the log position of a command, the first one after the position at which it was posted; None when the log
    does not hold it any more.

    `state` has the newest command only, and others may have been carried out since this one.
    """
    newest = int(state.ticket_position)
    if state.ticket == posted.ticket:
        return newest
    after = posted.after
    while after < newest:
        try:
            entries, _ = store.entries(after + 1, DECISIONS_PAGE.value)
        except StoreError:  # most likely overwritten
            break
        for entry in entries:
            if KINDS[entry.kind] in _COMMANDS:
                return int(entry.position)
        after += len(entries)
    return None
