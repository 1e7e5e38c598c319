"""Commands to the governor, with a controller that a test plays. Over HTTP: tests/app/routes/test_governor.py."""

from collections.abc import Iterator

import pytest

from core import commands
from core.commands import OutcomeUnknown, carry_out, post_configured
from core.regime import Regime
from core.settings.config import Config, MoralFilter
from shm.errors import Busy, Taken
from shm.records import StatePointer
from shm.store import Store
from testing.block_fixture import Formed

OTHER = Config(moral_filter=MoralFilter(adaptation_rate=0.02))


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Formed]:
    """A formed block without a controller; waits are short."""
    monkeypatch.setattr(commands, "_WAIT_SECONDS", 0.05)
    formed = Formed()
    yield formed
    formed.close()


class ControlledStore(Store):
    """A store whose controller carries out each command at the next look at the state."""

    def __init__(self, formed: Formed) -> None:
        super().__init__(formed.block)
        self.formed = formed

    def state(self) -> StatePointer:
        """Carry out what is pending, then look."""
        self.formed.store.apply_command(self.formed.now(), self.formed.epoch)
        return super().state()


class StuckStore(ControlledStore):
    """A store that cannot be looked at any more once a command was posted."""

    posted = False

    def state(self) -> StatePointer:
        """Raise Busy after the post."""
        if self.posted:
            raise Busy
        return super().state()

    def post_command(self, *arguments: object, **named: object) -> int:
        """Post, and get stuck."""
        self.posted = True
        return super().post_command(*arguments, **named)  # type: ignore[arg-type] # passed on


def test_a_command_that_is_carried_out_returns_its_state_and_position(formed: Formed) -> None:
    """The position is that of its entry in the log."""
    state, position = carry_out(ControlledStore(formed), "stop", lambda _state: None)

    assert state.scalars.flags == 1
    assert position == state.position == state.ticket_position


def test_a_command_that_is_not_carried_out_in_time_is_taken_back(formed: Formed) -> None:
    """There is no controller: it never will be."""
    with pytest.raises(Taken):
        carry_out(formed.store, "stop", lambda _state: None)

    assert not formed.store.command_pending()


def test_a_command_waits_for_another_one_that_is_pending(formed: Formed) -> None:
    """Not for ever."""
    formed.store.post_command("reset")

    with pytest.raises(Taken):
        carry_out(formed.store, "stop", lambda _state: None)
    _, position = carry_out(ControlledStore(formed), "stop", lambda _state: None)

    assert formed.entry(position or 0).kind == formed.entry((position or 0) - 1).kind + 2  # a stop after a reset


def test_the_outcome_in_a_stuck_store_is_unknown(formed: Formed) -> None:
    """The command was posted, and can neither be seen carried out nor be taken back."""
    with pytest.raises(OutcomeUnknown):
        carry_out(StuckStore(formed), "stop", lambda _state: None)


def test_configured_settings_are_posted_only_when_the_configuration_asks_for_others(formed: Formed) -> None:
    """What an operator has changed meanwhile stays while the configuration asks for the same as before."""
    store, settings = ControlledStore(formed), Regime.of(OTHER).to_record()

    post_configured(store, settings)
    assert store.state().settings.adaptation_rate == 0.02
    carry_out(store, "configure", lambda _state: Regime.of(Config()).to_record())
    post_configured(store, settings)

    assert store.state().settings.adaptation_rate == 0.05


def test_configured_settings_do_not_wait_for_the_controller(formed: Formed) -> None:
    """They are posted; while another command is pending, that is tried again until it is too late."""
    post_configured(formed.store, Regime.of(OTHER).to_record())
    assert formed.store.command_pending()

    with pytest.raises(Taken):
        post_configured(formed.store, Regime.of(Config()).to_record())
