"""Emergencies: when one begins, when it ends, and what a successor of the controller continues."""

import os
import random
import resource
from collections.abc import Iterator

import pytest
from msgspec import structs

from core.controller.controller import Controller
from core.controller.emergency import Emergency, reason_names
from core.limits import EMERGENCY_COOLDOWN_SECONDS
from core.machine.sampler import MachineSample, Sampler
from shm.errors import Corrupt, Exhausted, Lost, Stale
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY
from shm.recall import Match, Recall
from shm.records import new_idempotency_hash
from testing.block_fixture import begin, exit_of, make_mutex_irrecoverable
from tests.core.controller.test_controller import SteppedController

SECOND_NS = 1_000_000_000
START_NS = random.randrange(10**18)
COOLDOWN = EMERGENCY_COOLDOWN_SECONDS.value


class SteppedEmergency:
    """An emergency with a cooldown of 30 s, observed ten times a second under a clock that the test moves."""

    def __init__(self, **left: int) -> None:
        self.emergency = Emergency(30 * SECOND_NS, **left)
        self.now_ns = START_NS

    def hold(self, causes: int, seconds: float) -> list[tuple[int, bool]]:
        """Have these causes present for so long; return (reason, whether it began) of each change."""
        changes = []
        for _ in range(round(seconds * 10)):
            changes += [(change.reason, change.began) for change in self.emergency.observe(self.now_ns, causes)]
            self.now_ns += SECOND_NS // 10
        return changes


def test_a_reason_begins_with_its_cause_and_is_reported_once() -> None:
    """However long it lasts."""
    watched = SteppedEmergency()

    assert watched.hold(0, 1) == []
    assert watched.hold(EMERGENCY_MEMORY, 500) == [(EMERGENCY_MEMORY, True)]
    assert watched.emergency.in_force == EMERGENCY_MEMORY
    assert watched.emergency.since_ns == START_NS + SECOND_NS


def test_a_reason_ends_when_its_cause_was_absent_for_the_cooldown() -> None:
    """Not a moment before; a cause that returns in the cooldown restarts it and is no new episode."""
    watched = SteppedEmergency()
    watched.hold(EMERGENCY_MEMORY, 1)

    assert watched.hold(0, 29) + watched.hold(EMERGENCY_MEMORY, 0.1) + watched.hold(0, 30) == []
    assert watched.hold(0, 0.1) == [(EMERGENCY_MEMORY, False)]
    assert (watched.emergency.in_force, watched.emergency.since_ns) == (0, 0)


def test_each_return_of_a_cause_is_an_episode() -> None:
    """Each begins and ends."""
    watched = SteppedEmergency()

    assert [change for _ in range(5) for change in watched.hold(EMERGENCY_CORRUPT, 1) + watched.hold(0, 31)] == [
        (EMERGENCY_CORRUPT, True),
        (EMERGENCY_CORRUPT, False),
    ] * 5


def test_reasons_are_independent() -> None:
    """Each has its own cooldown, and the emergency lasts from the first to the last of them."""
    watched = SteppedEmergency()
    watched.hold(EMERGENCY_MEMORY, 1)
    watched.hold(EMERGENCY_MEMORY | EMERGENCY_CORRUPT, 1)

    assert watched.hold(EMERGENCY_CORRUPT, 31) == [(EMERGENCY_MEMORY, False)]
    assert watched.emergency.since_ns == START_NS
    assert list(reason_names(watched.emergency.in_force)) == ["corrupt"]


def test_resume_ends_a_cooldown() -> None:
    """An operator need not wait when the cause is gone."""
    watched = SteppedEmergency()
    watched.hold(EMERGENCY_CORRUPT | EMERGENCY_LOST | EMERGENCY_MEMORY, 1)
    watched.hold(0, 1)

    assert len(watched.emergency.overrule()) == 3
    assert watched.emergency.in_force == 0
    assert watched.hold(EMERGENCY_MEMORY, 1) == [(EMERGENCY_MEMORY, True)]


def test_resume_overrules_full_memory_until_it_is_no_longer_full() -> None:
    """It does not end the emergency of a corrupt store or a lost lock."""
    watched = SteppedEmergency()
    everything = EMERGENCY_CORRUPT | EMERGENCY_LOST | EMERGENCY_MEMORY
    watched.hold(everything, 1)

    assert [change.reason for change in watched.emergency.overrule()] == [EMERGENCY_MEMORY]
    assert watched.hold(everything, 100) == []
    assert watched.emergency.in_force == EMERGENCY_CORRUPT | EMERGENCY_LOST
    watched.hold(everything & ~EMERGENCY_MEMORY, 1)
    assert watched.hold(everything, 1) == [(EMERGENCY_MEMORY, True)]


def test_a_gap_between_observations_does_not_count_as_absence() -> None:
    """The controller was frozen for an hour: the cooldown begins when the cause is first observed to be absent."""
    watched = SteppedEmergency()
    watched.hold(EMERGENCY_MEMORY, 1)
    watched.now_ns += 3600 * SECOND_NS

    assert watched.hold(0, 29) == []
    assert watched.hold(0, 2) == [(EMERGENCY_MEMORY, False)]


def test_a_successor_continues_the_emergency() -> None:
    """It reports nothing twice, overrules what was overruled, and restarts the cooldown."""
    watched = SteppedEmergency(in_force=EMERGENCY_CORRUPT, overruled=EMERGENCY_MEMORY, since_ns=START_NS - 1)

    assert watched.hold(EMERGENCY_CORRUPT | EMERGENCY_MEMORY, 10) == []
    assert watched.emergency.since_ns == START_NS - 1
    assert watched.hold(0, 29) == []
    assert watched.hold(0, 2) == [(EMERGENCY_CORRUPT, False)]


# -- by the controller, on a real block --------------------------------------------------------------------------------


class FakeSampler:
    """A sampler of the real machine whose memory figure a test sets."""

    memory_percent = 50.0

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def sample(self) -> MachineSample:
        return structs.replace(self._sampler.sample(), memory_percent=self.memory_percent)


@pytest.fixture
def stepped(caplog: pytest.LogCaptureFixture) -> Iterator[SteppedController]:
    """A controller with a fake sampler."""
    stepped = SteppedController()
    fake_sampler(stepped.controller)
    stepped.run(1.5)
    yield stepped
    caplog.clear()  # a record may hold an exception, and that the frames it passed
    stepped.close()


def fake_sampler(controller: Controller, memory_percent: float = 50.0) -> FakeSampler:
    """Replace the sampler of a controller."""
    assert controller.sampler is not None
    sampler = FakeSampler(controller.sampler)
    sampler.memory_percent = memory_percent
    controller.sampler = sampler  # type: ignore[assignment] # it takes samples as well
    return sampler


def test_full_memory_refuses_events_and_nothing_else(
    stepped: SteppedController, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is decided; memories can be read and deleted; after the cooldown all is as before."""
    stepped.formed.accept(1)
    sampler = fake_sampler(stepped.controller, 95.0)
    stepped.run(1.5)

    for number in (0, 999_999):
        with pytest.raises(Exhausted):
            stepped.formed.decide(number)
    assert stepped.formed.store.memory(1).id == 1
    stepped.formed.store.forget(stepped.now_ns, 1)
    sampler.memory_percent = 94.9
    stepped.run(COOLDOWN)
    with pytest.raises(Exhausted):
        stepped.formed.accept(2)
    stepped.run(1.5)
    assert stepped.formed.accept(2) == 2
    assert stepped.formed.block.region("vitals").emergency_episodes == 1
    assert caplog.text.count("emergency: memory is nearly full") == 1
    assert caplog.text.count("emergency over: ") == 1


def test_a_repeated_key_is_answered_in_an_emergency(stepped: SteppedController) -> None:
    """Its decision was made before."""
    key = new_idempotency_hash((1, 2), 3)
    first = stepped.formed.decide(999_999, key=key)
    fake_sampler(stepped.controller, 99.0)
    stepped.run(1.5)

    assert stepped.formed.decide(999_999, key=key) == first._replace(repeated=1)


def test_resume_overrules_full_memory_at_once_and_for_a_successor(stepped: SteppedController) -> None:
    """Events are decided from the position of the command on, under the next controller too."""
    fake_sampler(stepped.controller, 99.0)
    stepped.run(1.5)
    stepped.formed.store.post_command("resume")
    stepped.controller.apply_pending_command(stepped.now_ns)

    assert stepped.formed.accept(1) == 1
    stepped.run(3)
    stepped.controller = stepped.another()
    fake_sampler(stepped.controller, 99.0)
    stepped.run(3)
    assert stepped.formed.accept(2) == 2


@pytest.mark.parametrize("carried_out", [False, True])
def test_resume_holds_when_the_controller_dies_around_it(stepped: SteppedController, carried_out: bool) -> None:
    """It dies before it carries the command out, or before it can publish that it has."""
    fake_sampler(stepped.controller, 99.0)
    stepped.run(1.5)
    stepped.formed.store.post_command("resume")
    if carried_out:
        stepped.formed.store.apply_command(stepped.now_ns, stepped.controller.epoch)
    stepped.controller = stepped.another()
    fake_sampler(stepped.controller, 99.0)
    stepped.run(3)

    assert stepped.formed.accept(1) == 1
    vitals = stepped.formed.block.region("vitals")
    assert (vitals.emergency, vitals.emergency_overruled) == (0, EMERGENCY_MEMORY)


@pytest.mark.parametrize("full", [False, True])
def test_a_successor_keeps_events_refused_until_its_own_cooldown_is_over(
    stepped: SteppedController, full: bool
) -> None:
    """It reports nothing twice; while the cause lasts, the emergency does."""
    fake_sampler(stepped.controller, 99.0)
    stepped.run(1.5)
    stepped.controller = stepped.another()
    with pytest.raises(Exhausted):
        stepped.formed.accept(1)

    fake_sampler(stepped.controller, 99.0 if full else 50.0)
    stepped.run(COOLDOWN + 1)

    vitals = stepped.formed.block.region("vitals")
    assert (vitals.emergency, vitals.emergency_episodes) == (EMERGENCY_MEMORY if full else 0, 1)


def test_a_controller_that_begins_without_descriptors_keeps_what_was_sampled(stepped: SteppedController) -> None:
    """It takes its epoch, beats, steps the rhythm, and keeps the memory figure that it cannot sample."""
    fake_sampler(stepped.controller, 99.0)
    stepped.run(1.5)

    def begin_without_descriptors() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        stepped.controller = stepped.another()
        steps = stepped.steps
        stepped.run(COOLDOWN + 1)
        vitals = stepped.formed.block.region("vitals")
        assert (vitals.controller_pid, vitals.heartbeat_ns) == (os.getpid(), stepped.now_ns)
        assert (vitals.memory_percent, vitals.emergency) == (99.0, EMERGENCY_MEMORY)
        assert stepped.steps > steps
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        stepped.run(1.5)
        assert vitals.memory_percent != 99.0

    assert exit_of(begin(begin_without_descriptors)) == 0


def test_corruption_is_an_emergency_with_a_beating_controller(
    stepped: SteppedController, caplog: pytest.LogCaptureFixture
) -> None:
    """It beats, samples, and logs it once; when the bytes are restored, events are decided after a cooldown and the
    rhythm continues.
    """
    state = stepped.formed.block.region("states", int(stepped.formed.store.state().position) & 1)
    state.scalars.theta, before = 0.123, state.scalars.theta
    stepped.run(3)
    vitals = stepped.formed.block.region("vitals")

    assert vitals.heartbeat_ns == stepped.now_ns
    assert vitals.emergency == EMERGENCY_CORRUPT
    with pytest.raises(Corrupt):
        stepped.formed.decide(999_999)
    state.scalars.theta = before
    stepped.run(1)
    with pytest.raises(Corrupt):
        stepped.formed.decide(999_999)  # the state is sound again, but the cooldown is not over
    stepped.run(COOLDOWN)
    assert stepped.formed.accept(1) == 1
    steps = stepped.steps
    stepped.run(2.5)
    assert stepped.steps > steps
    assert caplog.text.count("the committed state is corrupt") == 2  # when it began, and when it was over


def test_damaged_levels_are_found_while_unused_and_a_reset_replaces_them(stepped: SteppedController) -> None:
    """In the wake phase, without events, nothing else reads them. Resume alone does not help."""
    offset = stepped.formed.region_bytes("levels")[0] + int(stepped.formed.store.state().levels) * 3 * 64
    stepped.formed.block.memory[offset] ^= 1
    stepped.run(0.1)
    assert stepped.formed.block.region("vitals").emergency == EMERGENCY_CORRUPT

    stepped.formed.store.post_command("resume")
    stepped.run(0.1)
    with pytest.raises(Corrupt):
        stepped.formed.decide(0)
    stepped.formed.store.post_command("reset")
    stepped.run(0.1)
    stepped.formed.store.post_command("resume")
    stepped.run(0.02)

    assert stepped.formed.accept(1) == 1


def test_a_controller_that_begins_in_corruption_beats_and_takes_its_epoch_later(stepped: SteppedController) -> None:
    """Its predecessor, which still runs, exits."""
    state = stepped.formed.block.region("states", int(stepped.formed.store.state().position) & 1)
    state.scalars.theta, before = 0.123, state.scalars.theta
    stepped.run(1)
    first, stepped.controller = stepped.controller, stepped.another()
    stepped.controller.vitals.controller_pid += 1  # another process; this test has only one
    fake_sampler(stepped.controller)
    stepped.run(1)
    vitals = stepped.formed.block.region("vitals")

    assert (stepped.controller.epoch, vitals.heartbeat_ns) == (0, stepped.now_ns)
    with pytest.raises(Stale):
        first.run_round()
    state.scalars.theta = before
    stepped.run(COOLDOWN + 1)
    assert stepped.controller.epoch == 3
    assert stepped.formed.accept(1) == 1
    del first


def test_a_lost_lock_is_an_emergency_in_which_memories_can_be_read(stepped: SteppedController) -> None:
    """Nothing is decided, the controller beats, and memories stay."""
    stepped.formed.accept(1)
    make_mutex_irrecoverable(stepped.formed.block)
    stepped.run(3)
    vitals = stepped.formed.block.region("vitals")

    assert vitals.emergency == EMERGENCY_LOST
    assert vitals.heartbeat_ns == stepped.now_ns
    with pytest.raises(Lost):
        stepped.formed.decide(999_999)
    assert stepped.formed.store.memory(1).id == 1
    assert [match.id for match in recall(stepped)] == [1]
    assert stepped.formed.store.state().scalars.accepted == 1


def recall(stepped: SteppedController) -> list[Match]:
    """Return what the first vector of the pool finds."""
    _, vector = stepped.formed.pool.event(0)
    return Recall(stepped.formed.block).nearest(vector, 5, (3, 3), False, False).matches
