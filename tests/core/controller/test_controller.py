"""The controller: each of its pieces on an injected clock, and a real one that is killed and replaced."""

import logging
import os
import random
import signal

import pytest

from core.controller.controller import SUPERSEDED, VITALS_SECONDS, Controller, run
from core.controller.threshold_drift import BITS
from core.reference.log_replay import Scalars, replay
from core.regime import Regime
from core.settings.config import CognitiveRhythm, Config, MoralFilter
from shm import process
from shm.errors import Stale
from shm.layout import KINDS, NO_ROW, Layout
from shm.records import decided_of
from testing.block_fixture import NORM_MAX, SMALL, WAIT_MS, Formed, Witness, begin, end, exit_of, take_mutex, wait_until
from testing.eventually import eventually

SECOND = 1_000_000_000
ROUND_NS = 20_000_000
CONFIG = Config(dimension=SMALL.dimension, capacity=100)


class SteppedController:
    """A controller on a block of its own, run round by round under a clock that the test moves."""

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
    def test_one_step_each_cycle(self) -> None:
        """Not before a cycle is over, and then once for each."""
        stepped = SteppedController()
        stepped.run(0.98)
        assert stepped.steps == 0
        stepped.run(0.04)
        assert stepped.steps == 1
        stepped.run(21)
        assert stepped.steps == 22
        assert stepped.controller.vitals.late_steps == 0
        stepped.close()

    def test_late_steps_are_skipped_and_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        """After a pause of seven cycles one step is taken, six count as late, and the phase of the clock is kept."""
        stepped = SteppedController()
        stepped.run(1.5)
        stepped.now_ns += 7 * SECOND
        stepped.run(0.02)

        assert (stepped.steps, stepped.controller.vitals.late_steps) == (2, 6)
        assert "skipped 6 late steps" in caplog.text
        stepped.run(0.46)
        assert stepped.steps == 2
        stepped.run(0.04)
        assert stepped.steps == 3
        stepped.close()

    def test_late_steps_are_logged_once_a_minute(self, caplog: pytest.LogCaptureFixture) -> None:
        """Each line counts the steps skipped since the line before."""
        stepped = SteppedController()
        for _ in range(30):
            stepped.now_ns += 4 * SECOND
            stepped.run(0.02)

        lines = [record.getMessage() for record in caplog.records if "late steps" in record.getMessage()]
        assert len(lines) == 2
        assert sum(int(line.split()[1]) for line in lines) <= stepped.controller.vitals.late_steps
        stepped.close()

    def test_no_tick_when_events_step(self) -> None:
        """With the events' clock, time takes no step; decisions do."""
        stepped = SteppedController(
            Config(dimension=16, capacity=100, cognitive_rhythm=CognitiveRhythm(clock="events"))
        )
        stepped.run(5)
        assert stepped.steps == 0
        stepped.formed.accept()
        assert stepped.steps == 1
        stepped.close()

    def test_no_step_is_lost_while_the_lock_is_taken(self) -> None:
        """A cycle that ends while the lock is taken gets its step afterwards, or counts as late."""
        stepped = SteppedController(wait_ms=1)
        stepped.run(0.98)
        read, write = os.pipe()

        def hold() -> None:
            take_mutex(stepped.formed.block)
            os.write(write, b".")
            while True:  # busy, so that nobody removes it
                pass

        child = begin(hold)
        os.read(read, 1)
        stepped.run(0.1)
        end(child)
        os.close(read)
        os.close(write)
        stepped.run(0.2)

        assert stepped.steps + stepped.controller.vitals.late_steps == 1
        stepped.close()

    def test_a_shorter_cycle_takes_effect_at_once(self) -> None:
        """A change of the cycle from an hour to a second does not wait for the hour to end."""
        stepped = SteppedController(
            Config(dimension=16, capacity=100, cognitive_rhythm=CognitiveRhythm(cycle_seconds=3600))
        )
        stepped.run(1)
        stepped.formed.store.post_command("configure", Regime.of(CONFIG).to_record())
        stepped.run(3)

        assert 2 <= stepped.steps <= 3
        stepped.close()


class TestApplyPendingCommand:
    def test_a_command_is_carried_out_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """A command is carried out at the next round and never again; its ticket says so."""
        caplog.set_level(logging.INFO)
        stepped = SteppedController()
        ticket = stepped.formed.store.post_command("stop")
        stepped.run(0.1)
        entries, _ = stepped.formed.store.entries(1, 100)

        assert ticket == stepped.formed.store.state().ticket
        assert [KINDS[entry.kind] for entry in entries] == ["start", "stop"]
        assert "carried out stop at position 2" in caplog.text
        stepped.close()

    def test_each_kind_of_command_takes_effect(self) -> None:
        """Configure, reset, stop and resume change the state as their names say."""
        stepped = SteppedController()
        store = stepped.formed.store
        stepped.formed.accept()
        store.post_command(
            "configure",
            Regime.of(Config(moral_filter=MoralFilter(min_threshold=0.6, initial_threshold=0.7))).to_record(),
        )
        stepped.run(0.02)
        assert store.state().scalars.theta >= 0.6
        store.post_command("reset")
        stepped.run(0.02)
        assert (store.state().scalars.theta, store.state().scalars.ema) == (0.7, 0.5)
        store.post_command("stop")
        stepped.run(0.02)
        assert store.state().scalars.flags == 1
        store.post_command("resume")
        stepped.run(0.02)
        assert store.state().scalars.flags == 0
        assert stepped.formed.accept() == 2
        stepped.close()


class TestSuperseded:
    def test_a_superseded_controller_writes_nothing(self) -> None:
        """Once a second controller has begun, the first raises Stale at its next round and changes nothing."""
        stepped = SteppedController()
        stepped.run(0.5)
        first = stepped.controller
        stepped.controller = stepped.another()
        position = int(stepped.formed.store.state().position)
        stepped.now_ns += 2 * SECOND
        with pytest.raises(Stale):
            first.run_round()

        assert position == stepped.formed.store.state().position
        stepped.run(1)
        assert stepped.steps > 0
        del first
        stepped.close()

    def test_a_successor_continues_the_counts(self) -> None:
        """The counts of the predecessor go on under the new name."""
        stepped = SteppedController()
        stepped.run(3.5)
        before = stepped.controller.vitals
        stepped.controller = stepped.another()
        stepped.run(0.02)
        vitals = stepped.formed.block.region("vitals")

        assert before.scrubbed + 1 == vitals.scrubbed
        assert process.identify_self() == (vitals.controller_pid, vitals.controller_started)
        assert process.identify(os.getppid()) == (vitals.arbiter_pid, vitals.arbiter_started)
        stepped.close()


class TestScrub:
    def test_every_slot_is_checked_within_a_minute(self) -> None:
        """A store of any size is checked as a whole in 60 s of rounds."""
        stepped = SteppedController(layout=Layout(2, 20_000, 0, 1024, 2, 16))
        stepped.run(60)

        assert stepped.controller.vitals.scrubbed >= 20_001
        stepped.close()

    def test_a_corrupt_memory_is_lost(self, caplog: pytest.LogCaptureFixture) -> None:
        """A memory whose bytes changed is found, named, counted and entered as lost; the others live."""
        stepped = SteppedController()
        ids = [stepped.formed.accept(number) for number in range(20)]
        stepped.formed.block.memory[stepped.formed.region_bytes("vectors")[0] + 7 * 64] ^= 1
        stepped.run(60)

        assert stepped.formed.live_ids() == [one for one in ids if one != 7]
        assert stepped.formed.block.region("vitals").torn == 1
        assert "memory 7 was corrupt and is lost" in caplog.text
        entries, _ = stepped.formed.store.entries(1, 1000)
        assert [decided_of(entry).memory_id for entry in entries if KINDS[entry.kind] == "lost"] == [7]
        assert [entry for entry in entries if KINDS[entry.kind] == "delete"] == []
        state = stepped.formed.store.state()
        assert replay(entries, Regime.of_record(state.settings)).scalars == Scalars.of(state.scalars)
        stepped.close()

    def test_what_can_be_repaired_is_not_lost(self, caplog: pytest.LogCaptureFixture) -> None:
        """A damaged mark (of a live or deleted memory), header, chain head and row are repaired, counted and logged."""
        stepped = SteppedController()
        ids = [stepped.formed.accept(number) for number in range(20)]
        stepped.formed.store.forget(stepped.formed.now(), 9)
        for memory_id in (7, 9):
            stepped.formed.block.region("slots", memory_id).mark ^= 1 << random.randrange(64)
        stepped.formed.block.memory[random.randrange(192)] ^= 1
        chains, size = stepped.formed.region_bytes("chains")
        stepped.formed.block.memory[chains + random.randrange(size)] ^= 1
        rows, _ = stepped.formed.region_bytes("namespaces")
        stepped.formed.block.memory[rows + 512 * random.randrange(4) + random.randrange(480)] ^= 1
        stepped.run(60)

        assert stepped.formed.live_ids() == [one for one in ids if one != 9]
        assert bytes(size) == stepped.formed.block.memory[chains : chains + size]
        vitals = stepped.formed.block.region("vitals")
        assert (vitals.torn, vitals.mended) == (0, 5)
        for what in (
            "slot 7 had a damaged mark",
            "slot 9 had a damaged mark",
            "the header of the block was damaged",
            "the head of a chain of receipts was damaged",
            "a row of the table of namespaces was damaged",
        ):
            assert what in caplog.text
        stepped.close()


class TestPublishVitals:
    def test_each_round_writes_the_heartbeat(self) -> None:
        """The heartbeat is the clock of the last round."""
        stepped = SteppedController()
        for _ in range(5):
            stepped.run(0.02)
            assert stepped.now_ns == stepped.formed.block.region("vitals").heartbeat_ns
        stepped.close()

    def test_samples_the_machine(self) -> None:
        """Memory, CPU and disk are figures of a machine that exists."""
        stepped = SteppedController()
        stepped.run(2 * VITALS_SECONDS)
        vitals = stepped.formed.block.region("vitals")

        assert 0 < vitals.memory_percent <= 100
        assert 0 < vitals.memory_available_mb < vitals.memory_total_mb
        assert 0 <= vitals.cpu_percent <= 100
        assert 0 <= vitals.cpu_percent_30s <= 100
        assert vitals.cpu_count > 0
        assert 0 <= vitals.disk_percent <= 100
        stepped.close()

    def test_drift_is_logged_once_over_controllers(self, caplog: pytest.LogCaptureFixture) -> None:
        """A threshold that is at its bound for a minute is one episode, logged once."""
        stepped = SteppedController()
        while stepped.formed.store.state().scalars.theta < 0.9:
            stepped.formed.admit(1_000_000)
        stepped.run(65)

        assert stepped.formed.block.region("vitals").drift_episodes == 1
        assert caplog.text.count("threshold drift") == 1
        stepped.controller = stepped.another()  # the episode outlives its controller, and is not logged again
        stepped.run(65)
        vitals = stepped.formed.block.region("vitals")
        assert (vitals.drift_episodes, vitals.drift) == (1, BITS["at_maximum"])
        assert caplog.text.count("threshold drift") == 1
        stepped.close()


class TestCorrupt:
    def test_a_corrupt_state_is_logged_once_and_ends_no_controller(self, caplog: pytest.LogCaptureFixture) -> None:
        """A successor could not repair it either."""
        stepped = SteppedController()
        stepped.run(0.1)
        stepped.formed.block.region("states", int(stepped.formed.store.state().position) & 1).scalars.theta = 0.123
        stepped.run(3)

        assert caplog.text.count("committed state is corrupt") == 1
        caplog.clear()  # the record holds the exception, and that the frames it passed
        stepped.close()


class TestStuck:
    def test_a_stuck_holder_is_killed(self, caplog: pytest.LogCaptureFixture) -> None:
        """A stopped holder is removed within its rounds; meanwhile the controller goes on, and afterwards it ticks."""
        stepped = SteppedController(wait_ms=1)

        def hold() -> None:
            take_mutex(stepped.formed.block)
            os.kill(os.getpid(), signal.SIGSTOP)

        child = begin(hold)
        os.waitpid(child, os.WUNTRACED)

        def removed() -> int:
            """Samples are only as far apart as the wall clock is, and the rounds are the test's."""
            stepped.run(0.02)
            return int(stepped.formed.block.region("vitals").lock_kills)

        eventually(removed)
        assert exit_of(child) == -signal.SIGKILL
        assert f"removed stuck lock holder pid={child}" in caplog.text
        assert stepped.formed.block.region("vitals").lock_kills == 1
        stepped.run(2)
        assert stepped.steps > 0
        Witness(stepped.formed).check()
        stepped.close()


class TestRun:
    """Real children. The cycle is 20 ms, so that many steps fit into a moment."""

    FAST = Config(dimension=16, capacity=100, cognitive_rhythm=CognitiveRhythm(cycle_seconds=0.02))

    def child(self, formed: Formed) -> int:
        """Start a controller process."""
        me = process.identify_self()

        def work() -> None:
            os._exit(run(formed.block, self.FAST, me))

        return begin(work)

    def test_a_killed_controller_is_continued_by_the_next(self) -> None:
        """The next one takes up the rhythm where it was; nothing that was remembered is lost, and the log replays."""
        formed = Formed(regime=Regime.of(self.FAST))
        formed.be(0)
        for life in range(3):
            child = self.child(formed)
            steps = int(formed.store.state().scalars.step)
            wait_until(lambda steps=steps: formed.store.state().scalars.step >= steps + 4)  # type: ignore[misc]
            assert formed.block.epoch == 2 + life
            formed.accept(life)
            end(child)
            formed.accept(life + 10)  # while there is none

        assert formed.live_ids() == [1, 2, 3, 4, 5, 6]
        Witness(formed).check()
        formed.close()

    def test_sigterm_ends_it_and_signals_of_a_terminal_do_not(self) -> None:
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

    def test_a_damaged_epoch_is_not_taken_for_a_successor(self) -> None:
        """SUPERSEDED would keep it from being respawned; its successor continues."""
        formed = Formed(regime=Regime.of(self.FAST))
        child = self.child(formed)
        wait_until(lambda: formed.block.epoch == 2)
        formed.block.region("lock").epoch ^= 4

        assert exit_of(child) == 1
        successor = self.child(formed)
        steps = int(formed.store.state().scalars.step)
        wait_until(lambda: formed.store.state().scalars.step > steps)
        assert (formed.block.is_epoch_damaged, formed.block.epoch) == (False, 3)
        end(successor)
        formed.close()

    def test_an_older_controller_exits_with_superseded(self) -> None:
        """It does so as soon as a newer one has taken its epoch."""
        formed = Formed(regime=Regime.of(self.FAST))
        older = self.child(formed)
        wait_until(lambda: formed.block.epoch == 2)
        newer = self.child(formed)

        assert exit_of(older) == SUPERSEDED
        os.kill(newer, signal.SIGTERM)
        assert exit_of(newer) == 0
        formed.close()
