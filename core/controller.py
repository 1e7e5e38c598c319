"""The controller process: owner of the threshold and the rhythm, keeper of the lock, and never in the way of an event.

It creates the initial state, ticks the rhythm, carries out commands (configure, reset, stop, resume), watches the lock
for a stuck holder, samples the machine, watches the threshold for drift and scrubs the memories against their
checksums. Each is a method of `Controller` that does one bounded piece of work; `run` calls them fifty times a second.

While it is dead, admissions go on: workers decide events themselves, under the lock. The arbiter respawns it within
milliseconds, and the new one finds everything it needs in the block. Each controller takes an epoch when it begins, and
every write of it names that epoch: one that was stopped and wakes up later finds a newer epoch, writes nothing more and
leaves with SUPERSEDED, so that two arbiters during an upgrade agree on one controller without talking to each other.

Late ticks are skipped and counted, not caught up: a burst of consolidation after a pause would be work that nobody
asked for.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from core.config import Config
from core.drift import DriftWatch
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.regime import Regime
from core.vitals import Sampler
from shm import process
from shm.block import Block
from shm.layout import FLAG_EVENTS_CLOCK, KINDS, NO_ROW
from shm.status import Busy, Corrupt, Gone, Stale, StoreError, Unknown
from shm.store import Store, new_vitals
from shm.watch import INTERVAL_SECONDS, LockWatch

SUPERSEDED: Final = 9  # exit status: a newer controller has taken over, do not respawn me
SCRUB_SECONDS: Final = 50  # for one round over all slots; the promise is 60
VITALS_SECONDS: Final = 1.0
LATE_SAID_SECONDS: Final = 60.0  # between two lines about late steps: a starved machine is late each time

log = logging.getLogger("mlsdm.controller")


class Controller:
    """One controller on one block. `clock` returns CLOCK_BOOTTIME in ns; nothing here reads time in any other way."""

    def __init__(self, block: Block, config: Config, arbiter: process.Identity, clock: Callable[[], int]) -> None:
        self.block = block
        self.store = Store(block)
        self.watch = LockWatch(block)
        self.drift = DriftWatch()
        self.sampler = Sampler(Path("/"), clock)
        self.clock = clock
        self.epoch = int(self.store.epoch(clock(), Regime.of(config).to_record()).epoch)
        self.vitals = self._inherit_vitals(arbiter)
        self._scrub_at = 0
        self._scrub_per_round = -(-(block.layout.capacity + 1) * INTERVAL_SECONDS // SCRUB_SECONDS)
        self._sample_due_ns = 0
        self._tick_due_ns = clock() + self._cycle_ns()
        self._corrupt = False
        self._late_unsaid = 0
        self._late_said_ns = -int(LATE_SAID_SECONDS * 1e9)

    def _inherit_vitals(self, arbiter: process.Identity) -> Any:
        """Return the vitals to publish: the predecessor's counts under this controller's name."""
        vitals = new_vitals()
        for name in ("scrubbed", "torn", "drift_episodes", "lock_kills", "late_steps"):
            setattr(vitals, name, getattr(self.block.region("vitals"), name))
        me = process.myself()
        vitals.controller_pid, vitals.controller_started = me
        vitals.arbiter_pid, vitals.arbiter_started = arbiter
        return vitals

    def round(self) -> None:
        """Do everything that is due now, each piece bounded. Raises Stale when a newer controller has taken over."""
        now_ns = self.clock()
        self.guard_lock()
        try:
            self.obey(now_ns)
            self.tick(now_ns)
            self.scrub(now_ns)
            self._corrupt = False
        except Busy:
            pass  # the lock is taken or stuck; guard_lock judges which, and the work waits for the next round
        except Corrupt as error:
            if not self._corrupt:  # once per episode, not fifty times a second
                log.error("committed state is corrupt: %s; events are refused", error)
            self._corrupt = True
        self.feel(now_ns)

    def guard_lock(self) -> None:
        """Look at the lock once; a holder that has stood still for five looks is removed."""
        killed = self.watch.sample()
        if killed:
            self.vitals.lock_kills += 1
            log.error("removed stuck lock holder pid=%d", killed.pid)

    def obey(self, now_ns: int) -> None:
        """Carry out the pending command, if there is one."""
        entry = self.store.apply_command(now_ns, self.epoch)
        if entry:
            self._tick_due_ns = min(self._tick_due_ns, now_ns + self._cycle_ns())
            log.info("carried out %s at position %d", KINDS[entry.kind], entry.position)

    def tick(self, now_ns: int) -> None:
        """Step the rhythm when a cycle is over, unless events step it. What is late by whole cycles is skipped."""
        if self.store.state().settings.flags & FLAG_EVENTS_CLOCK:
            self._tick_due_ns = now_ns + self._cycle_ns()
        if now_ns < self._tick_due_ns:
            return
        late = (now_ns - self._tick_due_ns) // self._cycle_ns()
        self.store.tick(now_ns, self.epoch)
        if late:
            self.vitals.late_steps += late
            self._late_unsaid += late
            if now_ns >= self._late_said_ns + int(LATE_SAID_SECONDS * 1e9):
                log.warning("skipped %d late steps of the rhythm", self._late_unsaid)
                self._late_unsaid, self._late_said_ns = 0, now_ns
        self._tick_due_ns += (1 + late) * self._cycle_ns()

    def _cycle_ns(self) -> int:
        return int(self.store.state().settings.cycle_ns)

    def scrub(self, now_ns: int) -> None:
        """Check the next few slots against their checksums; what is corrupt is forgotten, so that nobody recalls it."""
        for _ in range(int(self._scrub_per_round)):
            sound, memory_id = self.store.slot_sound(self._scrub_at)
            if not sound:
                self.vitals.torn += 1
                log.error("memory %d is corrupt and is forgotten", memory_id)
                with suppress(Unknown, Gone):  # evicted or deleted meanwhile: nobody recalls it any more
                    self.store.forget(now_ns, memory_id)
            self._scrub_at = (self._scrub_at + 1) % (self.block.layout.capacity + 1)
            self.vitals.scrubbed += 1

    def feel(self, now_ns: int) -> None:
        """Beat, and once a second sample the machine and look at the threshold."""
        vitals = self.vitals
        try:
            if now_ns >= self._sample_due_ns:
                self._sample_due_ns = now_ns + int(VITALS_SECONDS * 1e9)
                sample = self.sampler.sample()
                for name in (
                    "memory_percent", "memory_available_mb", "memory_total_mb", "cpu_percent", "cpu_percent_30s",
                    "cpu_count", "disk_percent",
                ):  # fmt: skip
                    setattr(vitals, name, getattr(sample, name))
                state = self.store.state()
                for episode in self.drift.observe(
                    now_ns, state.scalars.theta, state.settings.min_threshold, state.settings.max_threshold
                ):
                    vitals.drift_episodes += 1
                    log.warning("threshold drift: %s", episode.sentence)
            vitals.heartbeat_ns = now_ns
            self.store.write_vitals(self.epoch, vitals)
        except (Busy, Corrupt):
            pass  # said above, once per episode; the beat waits for the lock


def run(block: Block, config: Config, arbiter: process.Identity) -> int:
    """Be the controller of a block until told to stop; returns the exit status.

    To be called in a fresh child of the arbiter.
    """
    process.die_with_parent(arbiter.pid)
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # a terminal sends them to the whole group; only the arbiter stops us
    block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value // 4, VECTOR_NORM.value)
    try:
        controller = Controller(block, config, arbiter, boot_clock)
        log.info("controller pid=%d begins epoch %d", os.getpid(), controller.epoch)
        while not stopping:
            began = time.monotonic()
            controller.round()
            time.sleep(max(0.001, INTERVAL_SECONDS - (time.monotonic() - began)))
    except Stale:
        log.info("controller pid=%d is superseded and leaves", os.getpid())
        return SUPERSEDED
    except StoreError as error:
        log.error("controller pid=%d leaves: %s", os.getpid(), error)
        return 1
    return 0


# Returns CLOCK_BOOTTIME in ns: it never steps, and it goes on while the machine sleeps. PERF: without a frame of its
# own, which would be a third of 0.13 µs; an event asks for the time twice.
boot_clock: Final = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
