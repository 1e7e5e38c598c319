"""Commands to the governor: the one way in which a process asks the controller to change it.

A command is posted into the command slot of the block, carried out by the controller between two decisions, and is an
entry of the log. One slot serves everybody, so posting is tried again while another command is pending.

Invariants: a command that is not carried out within COMMAND_WAIT_MILLISECONDS is taken back under the lock, so `Taken`
means that nothing happened and nothing will. Only where the store is stuck and the command cannot be taken back is its
outcome unknown.

Threading: blocks its caller for up to that time (three times that where the store is stuck): never on a worker's loop.
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
    """A command was posted, and could neither be seen carried out nor be taken back."""


class _Posted(NamedTuple):
    """A command in the slot: its ticket, and the log position after which it was posted."""

    ticket: int
    after: int


def carry_out(store: Store, kind: str, settings: Callable[[State], SettingsPointer | None]) -> tuple[State, int | None]:
    """Have the controller carry out a command; return the state that it led to, or a later one, and its log position,
    None when the log does not hold it any more.

    `settings(state)` makes the settings of a configure from the state that they are to replace; it is called again when
    another command was carried out in between. `store` belongs to the caller's thread. Raises Taken when the command
    was not carried out in time and never will be, OutcomeUnknown when nobody can tell.
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
        except StoreError as error:  # it is posted: whatever is wrong now, nobody may say that nothing was applied
            if time.monotonic() > 2 * _WAIT_SECONDS + deadline:
                raise OutcomeUnknown from error
        time.sleep(_POLL_SECONDS)
    raise Taken


def post_configured(store: Store, settings: SettingsPointer) -> None:
    """Post the settings that the configuration asks for, unless it asked for the same ones before; do not wait.

    They are compared with a checksum in the block and not with what was loaded last: a reload that failed here, an
    upgrade, or the way back from one may have left others in force. What an operator has changed while the server runs
    (PATCH /governor) holds until the configuration of the governor changes.
    Raises StoreError when they could not be posted in time.
    """
    configured = settings_checksum(settings)

    def post() -> None:
        state = store.state()
        if store.command_pending():
            raise Taken("another command is pending")  # it may be one of a configuration before this
        if state.configured != configured:
            store.post_command("configure", settings, configured, state.ticket)

    _retry(post, StoreError, time.monotonic() + _WAIT_SECONDS)


def _retry(post: Callable[[], _T], passing: type[StoreError], deadline: float) -> _T:
    """Return what `post` returns; while it raises `passing`, try again until the deadline, then raise that."""
    while True:
        try:
            return post()
        except passing:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _position(store: Store, posted: _Posted, state: State) -> int | None:
    """Return where the log holds a command: it is the first one after the position at which it was posted. None when
    the log does not hold it any more.

    `state` knows of the newest command only, and others may have been carried out before anybody looked.
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
