"""Emergencies: what puts the service into one, what ends it, and what of it outlives the controller."""

import ctypes
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
from shm._native import ffi
from shm.errors import Corrupt, Exhausted, Lost, Stale
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY
from shm.records import new_idempotency_hash
from shm.store import Match, Recall
from testing.block_fixture import begin, exit_of, take_mutex
from tests.core.controller.test_controller import Held

SECOND_NS = 1_000_000_000
START_NS = random.randrange(10**18)
COOLDOWN = EMERGENCY_COOLDOWN_SECONDS.value


class Watched:
    """An emergency of its own, with a cooldown of 30 s, observed ten times a second."""

    def __init__(self, **left: int) -> None:
        self.emergency = Emergency(30 * SECOND_NS, **left)
        self.now_ns = START_NS

    def hold(self, causes: int, seconds: float) -> list[tuple[int, bool]]:
        """Let causes last for so long; return (reason, whether it began) of what changes meanwhile."""
        changes = []
        for _ in range(round(seconds * 10)):
            changes += [(change.reason, change.began) for change in self.emergency.observe(self.now_ns, causes)]
            self.now_ns += SECOND_NS // 10
        return changes


def test_a_reason_comes_into_force_when_its_cause_is_seen_and_is_said_once() -> None:
    """However long it lasts."""
    watched = Watched()

    assert watched.hold(0, 1) == []
    assert watched.hold(EMERGENCY_MEMORY, 500) == [(EMERGENCY_MEMORY, True)]
    assert watched.emergency.in_force == EMERGENCY_MEMORY
    assert watched.emergency.since_ns == START_NS + SECOND_NS


def test_a_reason_goes_when_its_cause_was_absent_for_the_cooldown() -> None:
    """Not a moment before; a visit of the cause begins the cooldown anew and is no new episode."""
    watched = Watched()
    watched.hold(EMERGENCY_MEMORY, 1)

    assert watched.hold(0, 29) + watched.hold(EMERGENCY_MEMORY, 0.1) + watched.hold(0, 30) == []
    assert watched.hold(0, 0.1) == [(EMERGENCY_MEMORY, False)]
    assert (watched.emergency.in_force, watched.emergency.since_ns) == (0, 0)


def test_it_comes_back_as_often_as_its_cause_does() -> None:
    """Each time is an episode, begun and ended."""
    watched = Watched()

    assert [change for _ in range(5) for change in watched.hold(EMERGENCY_CORRUPT, 1) + watched.hold(0, 31)] == [
        (EMERGENCY_CORRUPT, True),
        (EMERGENCY_CORRUPT, False),
    ] * 5


def test_reasons_are_independent() -> None:
    """Each has its own cooldown, and the emergency lasts from the first to the last of them."""
    watched = Watched()
    watched.hold(EMERGENCY_MEMORY, 1)
    watched.hold(EMERGENCY_MEMORY | EMERGENCY_CORRUPT, 1)

    assert watched.hold(EMERGENCY_CORRUPT, 31) == [(EMERGENCY_MEMORY, False)]
    assert watched.emergency.since_ns == START_NS
    assert list(reason_names(watched.emergency.in_force)) == ["corrupt"]


def test_an_order_ends_a_cooldown() -> None:
    """The cause is gone, and an operator need not wait."""
    watched = Watched()
    watched.hold(EMERGENCY_CORRUPT | EMERGENCY_LOST | EMERGENCY_MEMORY, 1)
    watched.hold(0, 1)

    assert len(watched.emergency.overrule()) == 3
    assert watched.emergency.in_force == 0
    assert watched.hold(EMERGENCY_MEMORY, 1) == [(EMERGENCY_MEMORY, True)]


def test_an_order_overrules_full_memory_until_it_is_no_longer_full() -> None:
    """What is corrupt or lost is not made sound by an order."""
    watched = Watched()
    everything = EMERGENCY_CORRUPT | EMERGENCY_LOST | EMERGENCY_MEMORY
    watched.hold(everything, 1)

    assert [change.reason for change in watched.emergency.overrule()] == [EMERGENCY_MEMORY]
    assert watched.hold(everything, 100) == []
    assert watched.emergency.in_force == EMERGENCY_CORRUPT | EMERGENCY_LOST
    watched.hold(everything & ~EMERGENCY_MEMORY, 1)
    assert watched.hold(everything, 1) == [(EMERGENCY_MEMORY, True)]


def test_a_gap_between_observations_is_no_proof_of_absence() -> None:
    """Of a controller that was frozen for an hour: the cooldown begins when the cause is first seen to be gone."""
    watched = Watched()
    watched.hold(EMERGENCY_MEMORY, 1)
    watched.now_ns += 3600 * SECOND_NS

    assert watched.hold(0, 29) == []
    assert watched.hold(0, 2) == [(EMERGENCY_MEMORY, False)]


def test_a_successor_goes_on_with_what_it_finds() -> None:
    """It says nothing twice, overrules what was overruled, and begins the cooldown anew."""
    watched = Watched(in_force=EMERGENCY_CORRUPT, overruled=EMERGENCY_MEMORY, since_ns=START_NS - 1)

    assert watched.hold(EMERGENCY_CORRUPT | EMERGENCY_MEMORY, 10) == []
    assert watched.emergency.since_ns == START_NS - 1
    assert watched.hold(0, 29) == []
    assert watched.hold(0, 2) == [(EMERGENCY_CORRUPT, False)]


# -- by the controller, on a real block --------------------------------------------------------------------------------


class Felt:
    """A sampler that says of memory what it is told."""

    memory_percent = 50.0

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def sample(self) -> MachineSample:
        return structs.replace(self._sampler.sample(), memory_percent=self.memory_percent)


@pytest.fixture
def held(caplog: pytest.LogCaptureFixture) -> Iterator[Held]:
    """A controller with a sampler that can be told."""
    held = Held()
    felt(held.controller)
    held.run(1.5)
    yield held
    caplog.clear()  # a record may hold an exception, and that the frames it passed
    held.close()


def felt(controller: Controller, memory_percent: float = 50.0) -> Felt:
    """Replace the senses of a controller."""
    assert controller.sampler is not None
    sampler = Felt(controller.sampler)
    sampler.memory_percent = memory_percent
    controller.sampler = sampler  # type: ignore[assignment] # it takes samples as well
    return sampler


def test_full_memory_refuses_events_and_nothing_else(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is decided; memories can be read and deleted; after the cooldown all is as before."""
    held.formed.accept(1)
    sampler = felt(held.controller, 95.0)
    held.run(1.5)

    for number in (0, 999_999):
        with pytest.raises(Exhausted):
            held.formed.decide(number)
    assert held.formed.store.memory(1).id == 1
    held.formed.store.forget(held.now_ns, 1)
    sampler.memory_percent = 94.9
    held.run(COOLDOWN)
    with pytest.raises(Exhausted):
        held.formed.accept(2)
    held.run(1.5)
    assert held.formed.accept(2) == 2
    assert held.formed.block.region("vitals").emergency_episodes == 1
    assert caplog.text.count("emergency: memory is nearly full") == 1
    assert caplog.text.count("emergency over: ") == 1


def test_a_repeated_key_is_answered_in_an_emergency(held: Held) -> None:
    """What was decided before costs nothing to say again."""
    key = new_idempotency_hash((1, 2), 3)
    first = held.formed.decide(999_999, key=key)
    felt(held.controller, 99.0)
    held.run(1.5)

    assert held.formed.decide(999_999, key=key) == first._replace(repeated=1)


def test_resume_overrules_full_memory_at_once_and_across_a_death(held: Held) -> None:
    """From the position that the command is answered with, events are decided; a successor keeps to it."""
    felt(held.controller, 99.0)
    held.run(1.5)
    held.formed.store.post_command("resume")
    held.controller.apply_pending_command(held.now_ns)

    assert held.formed.accept(1) == 1
    held.run(3)
    held.controller = held.another()
    felt(held.controller, 99.0)
    held.run(3)
    assert held.formed.accept(2) == 2


@pytest.mark.parametrize("carried_out", [False, True])
def test_resume_holds_when_the_controller_dies_around_it(held: Held, carried_out: bool) -> None:
    """Whether it died before it carried the order out, or before it could publish that it had."""
    felt(held.controller, 99.0)
    held.run(1.5)
    held.formed.store.post_command("resume")
    if carried_out:
        held.formed.store.apply_command(held.now_ns, held.controller.epoch)
    held.controller = held.another()
    felt(held.controller, 99.0)
    held.run(3)

    assert held.formed.accept(1) == 1
    vitals = held.formed.block.region("vitals")
    assert (vitals.emergency, vitals.emergency_overruled) == (0, EMERGENCY_MEMORY)


@pytest.mark.parametrize("full", [False, True])
def test_events_stay_refused_while_the_controller_is_dead_and_its_successor_looks_anew(held: Held, full: bool) -> None:
    """The successor says nothing again, and ends the emergency after a cooldown of its own if the cause is gone."""
    felt(held.controller, 99.0)
    held.run(1.5)
    held.controller = held.another()
    with pytest.raises(Exhausted):
        held.formed.accept(1)

    felt(held.controller, 99.0 if full else 50.0)
    held.run(COOLDOWN + 1)

    vitals = held.formed.block.region("vitals")
    assert (vitals.emergency, vitals.emergency_episodes) == (EMERGENCY_MEMORY if full else 0, 1)


def test_a_controller_that_begins_without_descriptors_keeps_what_was_sampled(held: Held) -> None:
    """It takes its epoch, beats, steps the rhythm, and does not take memory that it cannot look at for empty."""
    felt(held.controller, 99.0)
    held.run(1.5)

    def begin_blind() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        held.controller = held.another()
        steps = held.steps
        held.run(COOLDOWN + 1)
        vitals = held.formed.block.region("vitals")
        assert (os.getpid(), held.now_ns) == (vitals.controller_pid, vitals.heartbeat_ns)
        assert (99.0, EMERGENCY_MEMORY) == (vitals.memory_percent, vitals.emergency)
        assert steps < held.steps
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        held.run(1.5)
        assert vitals.memory_percent != 99.0

    assert exit_of(begin(begin_blind)) == 0


def test_corruption_is_an_emergency_with_a_beating_controller(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    """It beats on, samples on, and says it once; when the bytes are right again, events are decided after a cooldown
    and the rhythm goes on.
    """
    state = held.formed.block.region("states", int(held.formed.store.state().position) & 1)
    state.scalars.theta, before = 0.123, state.scalars.theta
    held.run(3)
    vitals = held.formed.block.region("vitals")

    assert vitals.heartbeat_ns == held.now_ns
    assert vitals.emergency == EMERGENCY_CORRUPT
    with pytest.raises(Corrupt):
        held.formed.decide(999_999)
    state.scalars.theta = before
    held.run(1)
    with pytest.raises(Corrupt):
        held.formed.decide(999_999)  # the state is sound, and the cooldown is not over
    held.run(COOLDOWN)
    assert held.formed.accept(1) == 1
    steps = held.steps
    held.run(2.5)
    assert held.steps > steps
    assert caplog.text.count("the committed state is corrupt") == 2  # when it began, and when it was over


def test_damaged_levels_are_found_while_nothing_uses_them_and_a_reset_makes_new_ones(held: Held) -> None:
    """Awake, without events, nobody else would look at them. An order is not enough; new levels are."""
    offset = held.formed.region_bytes("levels")[0] + int(held.formed.store.state().levels) * 3 * 64
    held.formed.block.memory[offset] ^= 1
    held.run(0.1)
    assert held.formed.block.region("vitals").emergency == EMERGENCY_CORRUPT

    held.formed.store.post_command("resume")
    held.run(0.1)
    with pytest.raises(Corrupt):
        held.formed.decide(0)
    held.formed.store.post_command("reset")
    held.run(0.1)
    held.formed.store.post_command("resume")
    held.run(0.02)

    assert held.formed.accept(1) == 1


def test_a_controller_that_begins_in_corruption_beats_and_takes_its_epoch_later(held: Held) -> None:
    """Its predecessor, which is still there, leaves."""
    state = held.formed.block.region("states", int(held.formed.store.state().position) & 1)
    state.scalars.theta, before = 0.123, state.scalars.theta
    held.run(1)
    first, held.controller = held.controller, held.another()
    held.controller.vitals.controller_pid += 1  # another process; this test has only one
    felt(held.controller)
    held.run(1)
    vitals = held.formed.block.region("vitals")

    assert (held.controller.epoch, vitals.heartbeat_ns) == (0, held.now_ns)
    with pytest.raises(Stale):
        first.run_round()
    state.scalars.theta = before
    held.run(COOLDOWN + 1)
    assert held.controller.epoch == 3
    assert held.formed.accept(1) == 1
    del first


def test_a_lost_lock_is_an_emergency_in_which_memories_can_be_read(held: Held) -> None:
    """Nobody may ever hold it again: nothing is decided, the controller beats on, and what is remembered stays."""
    held.formed.accept(1)
    lose(held)
    held.run(3)
    vitals = held.formed.block.region("vitals")

    assert vitals.emergency == EMERGENCY_LOST
    assert vitals.heartbeat_ns == held.now_ns
    with pytest.raises(Lost):
        held.formed.decide(999_999)
    assert held.formed.store.memory(1).id == 1
    assert [match.id for match in recall(held)] == [1]
    assert held.formed.store.state().scalars.accepted == 1


def recall(held: Held) -> list[Match]:
    """Return what the first vector of the pool finds."""
    _, vector = held.formed.pool.event(0)
    return Recall(held.formed.block).nearest(vector, 5, (3, 3), False, False).matches


def lose(held: Held) -> None:
    """Make the mutex irrecoverable: its owner dies, and who is told so gives it back without having repaired it."""
    block = held.formed.block

    def die() -> None:
        take_mutex(block)
        os._exit(0)

    assert exit_of(begin(die)) == 0
    take_mutex(block)
    mutex = ctypes.c_void_p(int(ffi.cast("uintptr_t", block.region("lock"))))
    assert ctypes.CDLL(None).pthread_mutex_unlock(mutex) == 0
