"""The controller: each of its pieces on an injected clock, and a real one that is killed and replaced."""

import logging
import os
import random
import signal

import pytest

from core.controller.controller import SUPERSEDED, VITALS_SECONDS, Controller, run
from core.controller.threshold_drift import BITS
from core.regime import Regime
from core.settings.config import CognitiveRhythm, Config, MoralFilter
from shm import process
from shm.errors import Stale
from shm.layout import KINDS, NO_ROW, Layout
from testing.block_fixture import NORM_MAX, SMALL, WAIT_MS, Formed, Witness, begin, end, exit_of, take_mutex, wait_until

SECOND = 1_000_000_000
ROUND_NS = 20_000_000
CONFIG = Config(dimension=SMALL.dimension, capacity=100)


class Held:
    """A controller whose clock moves when it is told to."""

    def __init__(self, config: Config = CONFIG, layout: Layout = SMALL, wait_ms: int = WAIT_MS) -> None:
        self.now_ns = random.randrange(10**18)
        self.formed = Formed(layout, Regime.of(config), wait_ms)
        self.formed.block.bind(os.getpid(), NO_ROW, wait_ms, NORM_MAX)
        self.controller = self.another(config)

    def another(self, config: Config = CONFIG) -> Controller:
        """Make one more controller of the same block."""
        return Controller(self.formed.block, config, process.identify(os.getppid()), lambda: self.now_ns)

    def run(self, seconds: float) -> None:
        """Let time pass in rounds."""
        for _ in range(round(seconds * SECOND / ROUND_NS)):
            self.now_ns += ROUND_NS
            self.controller.run_round()

    @property
    def steps(self) -> int:
        """Steps of the rhythm so far."""
        return int(self.formed.store.state().scalars.step)

    def close(self) -> None:
        """Let go of the block."""
        del self.controller
        self.formed.close()


class TestTick:
    def test_once_a_cycle(self) -> None:
        """Not before a cycle is over, and then once for each."""
        held = Held()
        held.run(0.98)
        assert held.steps == 0
        held.run(0.04)
        assert held.steps == 1
        held.run(21)
        assert held.steps == 22
        assert held.controller.vitals.late_steps == 0
        held.close()

    def test_late_ones_are_skipped_and_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        """After a pause of seven cycles one step is taken, six are counted as late, and the beat is where it was."""
        held = Held()
        held.run(1.5)
        held.now_ns += 7 * SECOND
        held.run(0.02)

        assert (2, 6) == (held.steps, held.controller.vitals.late_steps)
        assert "skipped 6 late steps" in caplog.text
        held.run(0.46)
        assert held.steps == 2
        held.run(0.04)
        assert held.steps == 3
        held.close()

    def test_a_machine_that_is_always_late_is_said_to_be_so_once_a_minute(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each line counts what was skipped since the one before."""
        held = Held()
        for _ in range(30):
            held.now_ns += 4 * SECOND
            held.run(0.02)

        lines = [record.getMessage() for record in caplog.records if "late steps" in record.getMessage()]
        assert len(lines) == 2
        assert sum(int(line.split()[1]) for line in lines) <= held.controller.vitals.late_steps
        held.close()

    def test_not_when_events_step(self) -> None:
        """With the events' clock, time takes no step; decisions do."""
        held = Held(Config(dimension=16, capacity=100, cognitive_rhythm=CognitiveRhythm(clock="events")))
        held.run(5)
        assert held.steps == 0
        held.formed.accept()
        assert held.steps == 1
        held.close()

    def test_no_step_is_lost_to_a_taken_lock(self) -> None:
        """When the lock is not to be had as a cycle ends, the step is taken afterwards, or counted as late."""
        held = Held(wait_ms=1)
        held.run(0.98)
        read, write = os.pipe()

        def hold() -> None:
            take_mutex(held.formed.block)
            os.write(write, b".")
            while True:  # busy, so that nobody removes it
                pass

        child = begin(hold)
        os.read(read, 1)
        held.run(0.1)
        end(child)
        os.close(read)
        os.close(write)
        held.run(0.2)

        assert held.steps + held.controller.vitals.late_steps == 1
        held.close()

    def test_a_shorter_cycle_takes_effect_at_once(self) -> None:
        """Who changes the cycle from an hour to a second does not wait an hour for it."""
        held = Held(Config(dimension=16, capacity=100, cognitive_rhythm=CognitiveRhythm(cycle_seconds=3600)))
        held.run(1)
        held.formed.store.post_command("configure", Regime.of(CONFIG).to_record())
        held.run(3)

        assert 2 <= held.steps <= 3
        held.close()


class TestObey:
    def test_carries_out_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """A command is carried out at the next round and never again; its ticket says so."""
        caplog.set_level(logging.INFO)
        held = Held()
        ticket = held.formed.store.post_command("stop")
        held.run(0.1)
        entries, _ = held.formed.store.entries(1, 100)

        assert ticket == held.formed.store.state().ticket
        assert [KINDS[entry.kind] for entry in entries] == ["epoch", "epoch", "stop"]
        assert "carried out stop at position 3" in caplog.text
        held.close()

    def test_configure_reset_stop_resume(self) -> None:
        """Each kind does what it says."""
        held = Held()
        store = held.formed.store
        held.formed.accept()
        store.post_command(
            "configure",
            Regime.of(Config(moral_filter=MoralFilter(min_threshold=0.6, initial_threshold=0.7))).to_record(),
        )
        held.run(0.02)
        assert 0.6 <= store.state().scalars.theta
        store.post_command("reset")
        held.run(0.02)
        assert (0.7, 0.5) == (store.state().scalars.theta, store.state().scalars.ema)
        store.post_command("stop")
        held.run(0.02)
        assert store.state().scalars.flags == 1
        store.post_command("resume")
        held.run(0.02)
        assert store.state().scalars.flags == 0
        assert held.formed.accept() == 2
        held.close()


class TestSuperseded:
    def test_the_old_one_writes_nothing_more(self) -> None:
        """Once a second controller has begun, the first raises Stale at its next round and changes nothing."""
        held = Held()
        held.run(0.5)
        first = held.controller
        held.controller = held.another()
        position = int(held.formed.store.state().position)
        held.now_ns += 2 * SECOND
        with pytest.raises(Stale):
            first.run_round()

        assert position == held.formed.store.state().position
        held.run(1)
        assert held.steps > 0
        del first
        held.close()

    def test_inherits(self) -> None:
        """The counts of the predecessor go on under the new name."""
        held = Held()
        held.run(3.5)
        before = held.controller.vitals
        held.controller = held.another()
        held.run(0.02)
        vitals = held.formed.block.region("vitals")

        assert before.scrubbed + 1 == vitals.scrubbed
        assert process.identify_self() == (vitals.controller_pid, vitals.controller_started)
        assert process.identify(os.getppid()) == (vitals.arbiter_pid, vitals.arbiter_started)
        held.close()


class TestScrub:
    def test_every_slot_within_a_minute(self) -> None:
        """A store of any size is checked as a whole in 60 s of rounds."""
        held = Held(layout=Layout(2, 20_000, 0, 1024, 2, 16))
        held.run(60)

        assert held.controller.vitals.scrubbed >= 20_001
        held.close()

    def test_what_is_corrupt_is_forgotten(self, caplog: pytest.LogCaptureFixture) -> None:
        """A memory whose bytes changed is found, named, counted and deleted; the others live."""
        held = Held()
        ids = [held.formed.accept(number) for number in range(20)]
        held.formed.block.memory[held.formed.region_bytes("vectors")[0] + 7 * 64] ^= 1
        held.run(60)

        assert [one for one in ids if one != 7] == held.formed.live_ids()
        assert held.formed.block.region("vitals").torn == 1
        assert "memory 7 is corrupt and is forgotten" in caplog.text
        held.close()

    def test_what_can_be_put_right_is_not_forgotten(self, caplog: pytest.LogCaptureFixture) -> None:
        """A damaged mark (of one that lives, of one deleted), header and head of a chain: counted, said, whole."""
        held = Held()
        ids = [held.formed.accept(number) for number in range(20)]
        held.formed.store.forget(held.formed.now(), 9)
        for memory_id in (7, 9):
            held.formed.block.region("slots", memory_id).deleted_at ^= 1 << random.randrange(64)
        held.formed.block.memory[random.randrange(192)] ^= 1
        chains, size = held.formed.region_bytes("chains")
        held.formed.block.memory[chains + random.randrange(size)] ^= 1
        held.run(60)

        assert [one for one in ids if one != 9] == held.formed.live_ids()
        assert bytes(size) == held.formed.block.memory[chains : chains + size]
        assert (0, 4) == (held.formed.block.region("vitals").torn, held.formed.block.region("vitals").mended)
        for what in (
            "memory 7 had a damaged mark",
            "memory 9 had a damaged mark",
            "the header of the block was damaged",
            "the head of a chain of receipts was damaged",
        ):
            assert what in caplog.text
        held.close()


class TestFeel:
    def test_beats_every_round(self) -> None:
        """The heartbeat is the clock of the last round."""
        held = Held()
        for _ in range(5):
            held.run(0.02)
            assert held.now_ns == held.formed.block.region("vitals").heartbeat_ns
        held.close()

    def test_samples_the_machine(self) -> None:
        """Memory, CPU and disk are figures of a machine that exists."""
        held = Held()
        held.run(2 * VITALS_SECONDS)
        vitals = held.formed.block.region("vitals")

        assert 0 < vitals.memory_percent <= 100
        assert 0 < vitals.memory_available_mb < vitals.memory_total_mb
        assert 0 <= vitals.cpu_percent <= 100
        assert 0 <= vitals.cpu_percent_30s <= 100
        assert vitals.cpu_count > 0
        assert 0 <= vitals.disk_percent <= 100
        held.close()

    def test_watches_for_drift(self, caplog: pytest.LogCaptureFixture) -> None:
        """A threshold that sits at its bound for a minute is an episode, said once."""
        held = Held()
        while held.formed.store.state().scalars.theta < 0.9:
            held.formed.admit(1_000_000)
        held.run(65)

        assert held.formed.block.region("vitals").drift_episodes == 1
        assert caplog.text.count("threshold drift") == 1
        held.controller = held.another()  # the episode outlives its controller, and is not said again
        held.run(65)
        vitals = held.formed.block.region("vitals")
        assert (1, BITS["at_maximum"]) == (vitals.drift_episodes, vitals.drift)
        assert caplog.text.count("threshold drift") == 1
        held.close()


class TestCorrupt:
    def test_stays_and_says_it_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """A corrupt state ends no controller: a new one could do nothing about it either. It is said once."""
        held = Held()
        held.run(0.1)
        held.formed.block.region("states", int(held.formed.store.state().position) & 1).scalars.theta = 0.123
        held.run(3)

        assert caplog.text.count("committed state is corrupt") == 1
        caplog.clear()  # the record holds the exception, and that the frames it passed
        held.close()

    def test_a_changed_epoch_is_no_successor(self, caplog: pytest.LogCaptureFixture) -> None:
        """Also when the flipped bits are those of the epoch: SUPERSEDED would mean that nobody respawns it."""
        held = Held()
        held.run(0.1)
        held.formed.block.region("states", int(held.formed.store.state().position) & 1).epoch ^= 4
        held.run(3)
        caplog.clear()
        held.close()


class TestStuck:
    def test_removes_a_stuck_holder(self, caplog: pytest.LogCaptureFixture) -> None:
        """A stopped holder is removed within its rounds; meanwhile the controller goes on, and afterwards it ticks."""
        held = Held(wait_ms=1)

        def hold() -> None:
            take_mutex(held.formed.block)
            os.kill(os.getpid(), signal.SIGSTOP)

        child = begin(hold)
        os.waitpid(child, os.WUNTRACED)
        held.run(0.2)

        assert exit_of(child) == -signal.SIGKILL
        assert f"removed stuck lock holder pid={child}" in caplog.text
        assert held.formed.block.region("vitals").lock_kills == 1
        held.run(2)
        assert held.steps > 0
        Witness(held.formed).check()
        held.close()


class TestRun:
    """Real children. The cycle is 20 ms, so that many steps fit into a moment."""

    FAST = Config(dimension=16, capacity=100, cognitive_rhythm=CognitiveRhythm(cycle_seconds=0.02))

    def child(self, formed: Formed) -> int:
        """Start a controller process."""
        me = process.identify_self()

        def work() -> None:
            os._exit(run(formed.block, self.FAST, me))

        return begin(work)

    def test_killed_and_replaced(self) -> None:
        """The next one takes up the rhythm where it was; nothing that was remembered is lost, and the log replays."""
        formed = Formed(regime=Regime.of(self.FAST))
        formed.be(0)
        for life in range(3):
            child = self.child(formed)
            steps = int(formed.store.state().scalars.step)
            wait_until(lambda steps=steps: formed.store.state().scalars.step >= steps + 4)  # type: ignore[misc]
            assert 2 + life == formed.store.state().epoch
            formed.accept(life)
            end(child)
            formed.accept(life + 10)  # while there is none

        assert formed.live_ids() == [1, 2, 3, 4, 5, 6]
        Witness(formed).check()
        formed.close()

    def test_told_to_stop(self) -> None:
        """SIGTERM ends it with 0; what a terminal sends does not end it."""
        formed = Formed(regime=Regime.of(self.FAST))
        child = self.child(formed)
        wait_until(lambda: formed.block.region("vitals").controller_pid == child)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(child, ignored)
        steps = int(formed.store.state().scalars.step)
        wait_until(lambda: formed.store.state().scalars.step > steps)
        os.kill(child, signal.SIGTERM)

        assert exit_of(child) == 0
        formed.close()

    def test_superseded(self) -> None:
        """An older one leaves with SUPERSEDED as soon as a newer has begun."""
        formed = Formed(regime=Regime.of(self.FAST))
        older = self.child(formed)
        wait_until(lambda: formed.store.state().epoch == 2)
        newer = self.child(formed)

        assert exit_of(older) == SUPERSEDED
        os.kill(newer, signal.SIGTERM)
        assert exit_of(newer) == 0
        formed.close()
