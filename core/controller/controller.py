"""The controller process: it owns threshold and rhythm and watches the store, and is never on the path of an event.

Owns: the initial state, the ticks of the rhythm, pending commands, the vitals, the scrub, the watch over the lock.
`run` calls `Controller.run_round` fifty times a second; each of its steps does one bounded piece of work.

Invariants: admissions continue while the controller is dead: workers decide events under the lock. A successor finds
everything that it needs in the block. Each controller takes an epoch and passes it with every write that only the
controller may do, so a controller that was stopped and continues later finds a newer epoch and exits with SUPERSEDED.
Until then it can do only work that is correct for any process: repair a mark or the header, enter a corrupt memory as
lost, kill a stuck lock holder. While the word of the epoch is damaged no controller may write: it exits, and its
successor takes the next epoch. If the committed state is corrupt or the lock is lost, no epoch can be taken or checked:
the controller then does only work that needs neither, and writes its vitals without the lock.

Rejected: catching up on late ticks. A burst of consolidation after a pause delays events to no purpose.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

from core.clock import boot_clock
from core.controller.emergency import Change, Emergency
from core.controller.threshold_drift import BITS, DriftWatch
from core.limits import EMERGENCY_COOLDOWN_SECONDS, LOCK_WAIT_MILLISECONDS, MEMORY_PERCENT, VECTOR_NORM
from core.machine.memory_footprint import memory_footprint
from core.machine.sampler import Sampler
from core.regime import Regime
from core.settings.config import Config
from shm import process
from shm.block import Block
from shm.errors import Busy, Corrupt, Gone, Lost, Stale, StoreError, Unknown
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY, FLAG_EVENTS_CLOCK, KINDS, NO_ROW
from shm.lock_watch import INTERVAL_SECONDS, LockWatch
from shm.records import EntryPointer, VitalsPointer, new_vitals
from shm.store import ROWS_PER_READ, Store

ROOT: Final = Path("/")
SUPERSEDED: Final = 9  # exit status: a newer controller has taken over; the arbiter must not respawn this one
SCRUB_SECONDS: Final = 50  # for one pass over all slots, links and chains; the documents promise 60
LINKS_PER_SECTION: Final = 32  # slots whose links are checked while the lock is held: 10 µs
VITALS_SECONDS: Final = 1.0
FOOTPRINT_SECONDS: Final = 5.0
LATE_LOG_SECONDS: Final = 60.0  # between two lines about late steps: an overloaded machine is late every time

log = logging.getLogger("mlsdm.controller")


class Controller:
    """One controller on one block. `clock` returns CLOCK_BOOTTIME in ns and is the only source of time here."""

    def __init__(self, block: Block, config: Config, arbiter: process.Identity, clock: Callable[[], int]) -> None:
        self.block = block
        self.store = Store(block)
        self.step: Callable[[int, int], EntryPointer] = self.store.tick  # tracing replaces it by a wrapper
        self.lock_watch = LockWatch(block)
        self.clock = clock
        inherited = block.region("vitals")
        self.drift = DriftWatch(kind for kind, bit in BITS.items() if inherited.drift & bit)
        self._predecessor = int(inherited.controller_pid)
        self.emergency = Emergency(
            EMERGENCY_COOLDOWN_SECONDS.value * 1_000_000_000,
            int(inherited.emergency),
            int(inherited.emergency_overruled),
            int(inherited.emergency_since_ns),
        )
        self._causes = 0
        self.vitals = self._inherit_vitals(arbiter)
        self._scrub_at = 0
        self._link_at = 0
        self._chain_at = 0
        self._namespace_at = 0
        self._sample_due_ns = 0
        self._footprint_due_ns = 0
        self._sampling_failed = False
        self._late_unlogged = 0
        self._late_logged_ns = -int(LATE_LOG_SECONDS * 1e9)
        self._settings = Regime.of(config).to_record()  # of the first state, if this is the first controller
        self.epoch = 0
        self._tick_due_ns = 0
        with suppress(Busy, Corrupt, Lost):  # each round tries again
            self._begin_epoch()
        self.sampler: Sampler | None = None
        with suppress(OSError):  # no free descriptor: each sample tries again
            self.sampler = Sampler(ROOT, clock)  # after the epoch was taken: it reads some forty files of the kernel

    def _inherit_vitals(self, arbiter: process.Identity) -> VitalsPointer:
        """Return the predecessor's vitals, signed by this controller.

        Counts continue, and samples stay until there are newer ones.
        """
        vitals = new_vitals()
        vitals[0] = self.block.region("vitals")[0]
        vitals.controller_pid, vitals.controller_started = os.getpid(), process.identify(os.getpid()).started
        vitals.arbiter_pid, vitals.arbiter_started = arbiter
        return vitals

    def run_round(self) -> None:
        """Do everything that is due, each step bounded. Raises Stale when a newer controller has taken over."""
        now_ns = self.clock()
        self.watch_lock()
        self.repair_header()
        try:
            if not self.epoch:
                self._begin_epoch()
            self.apply_pending_command(now_ns)
            self.store.state()  # raises Corrupt: a corrupt state does not tell which slots are in use
            self.scrub(now_ns)
            self.scrub_links()
            self.scrub_chains()
            self.scrub_namespaces()
            self.tick(now_ns)
            self.store.levels()  # a tick in the wake phase does not check them
            self._causes = 0
        except Busy:
            pass  # the lock is taken or stuck: watch_lock decides which; the work waits for the next round
        except Corrupt:
            self._causes = EMERGENCY_CORRUPT
        except Lost:
            self._causes = EMERGENCY_LOST
        self.publish_vitals(now_ns)

    def _begin_epoch(self) -> None:
        """Take a new epoch, which makes every older one void."""
        self.epoch = self.store.begin_epoch(self.block.log_time(self.clock()), self._settings)
        self._tick_due_ns = self.clock() + self._cycle_ns()
        log.info("controller pid=%d begins epoch %d", os.getpid(), self.epoch)

    def watch_lock(self) -> None:
        """Sample the lock once; kill a holder that has not moved for five samples."""
        killed = self.lock_watch.sample()
        if killed:
            self.vitals.lock_kills += 1
            log.error("removed stuck lock holder pid=%d", killed.pid)

    def repair_header(self) -> None:
        """Restore the header when it has changed: the next process that opens the block would refuse it."""
        if self.block.repair_header():
            self.vitals.mended += 1
            log.error("the header of the block was damaged and has been repaired")

    def apply_pending_command(self, now_ns: int) -> None:
        """Carry out the pending command, if there is one."""
        entry = self.store.apply_command(self.block.log_time(now_ns), self.epoch)
        if entry:
            log.info("carried out %s at position %d", KINDS[entry.kind], entry.position)
            if KINDS[entry.kind] == "resume":  # before the state is read again: it may be corrupt by then
                self._log_changes(self.emergency.overrule())
            self._tick_due_ns = min(self._tick_due_ns, now_ns + self._cycle_ns())

    def tick(self, now_ns: int) -> None:
        """Step the rhythm when a cycle is over, unless events step it. Cycles that have passed entirely are skipped."""
        if self.store.state().settings.flags & FLAG_EVENTS_CLOCK:
            self._tick_due_ns = now_ns + self._cycle_ns()
        if now_ns < self._tick_due_ns:
            return
        late = (now_ns - self._tick_due_ns) // self._cycle_ns()
        self.step(self.block.log_time(now_ns), self.epoch)
        if late:
            self.vitals.late_steps += late
            self._late_unlogged += late
            if now_ns >= self._late_logged_ns + int(LATE_LOG_SECONDS * 1e9):
                log.warning("skipped %d late steps of the rhythm", self._late_unlogged)
                self._late_unlogged, self._late_logged_ns = 0, now_ns
        self._tick_due_ns += (1 + late) * self._cycle_ns()

    def _cycle_ns(self) -> int:
        return int(self.store.state().settings.cycle_ns)

    def scrub(self, now_ns: int) -> None:
        """Check the next few slots against their checksums.

        A damaged mark is repaired. A corrupt memory is entered as lost, so that no recall returns it.
        """
        for _ in range(_per_round(self.block.layout.slots)):
            sound, memory_id = self.store.check_slot(self._scrub_at)
            if not sound:
                self._repair_slot(now_ns, self._scrub_at, memory_id)
            self._scrub_at = (self._scrub_at + 1) % (self.block.layout.slots)
            self.vitals.scrubbed += 1

    def _repair_slot(self, now_ns: int, slot: int, memory_id: int) -> None:
        if self.store.repair_slot(slot):
            self.vitals.mended += 1
            log.error("slot %d had a damaged mark, which has been repaired", slot)
            return
        with suppress(Unknown, Gone):  # evicted or deleted meanwhile: no recall returns it
            if self.store.lose(self.block.log_time(now_ns), memory_id):
                self.vitals.torn += 1
                log.error("memory %d was corrupt and is lost", memory_id)

    def scrub_links(self) -> None:
        """Hold index and lists against the next few slots. Where they differ, they are made again from the slots."""
        left = _per_round(self.block.layout.slots)
        while left:
            count = min(left, LINKS_PER_SECTION, self.block.layout.slots - self._link_at)
            if self.store.repair_links(self._link_at, count):
                self.vitals.mended += 1
                log.error("the index of memories did not agree with the slots and has been made again")
            self._link_at = (self._link_at + count) % self.block.layout.slots
            left -= count

    def scrub_chains(self) -> None:
        """Check the heads of the next few chains of receipts.

        While one is damaged, keyed events of its chain are refused, because their first answer cannot be found.
        """
        capacity = self.block.layout.receipt_capacity
        count = min(_per_round(capacity), capacity - self._chain_at)
        chain = self.store.find_damaged_chain(self._chain_at, count)
        after = self._chain_at + count if chain is None else chain + 1
        if chain is not None and self.store.repair_chain(chain):
            self.vitals.mended += 1
            log.error("the head of a chain of receipts was damaged and has been repaired")
        elif chain is not None:
            log.error("the head of a chain of receipts is damaged, and so is a receipt that it may have named")
        self._chain_at = after % capacity

    def scrub_namespaces(self) -> None:
        """Check the next few rows of the table of namespaces; a damaged copy is written again from the other one.

        While both copies of a row are damaged, what would change it is refused, and the other namespaces go on.
        """
        rows = self.block.layout.namespaces
        count = min(_per_round(rows), ROWS_PER_READ, rows - self._namespace_at)
        try:
            mended = self.store.repair_namespaces(self._namespace_at, count)
        except Corrupt:
            log.error("both copies of a row of the table of namespaces are damaged: events of it are refused")
        else:
            if mended:
                self.vitals.mended += mended
                log.error("a row of the table of namespaces was damaged and has been repaired")
        self._namespace_at = (self._namespace_at + count) % rows

    def publish_vitals(self, now_ns: int) -> None:
        """Write heartbeat and emergency; once a second also sample the machine and check the threshold for drift."""
        vitals = self.vitals
        vitals.heartbeat_ns = now_ns
        if now_ns >= self._sample_due_ns:
            self._sample_due_ns = now_ns + int(VITALS_SECONDS * 1e9)
            self._sample()
            with suppress(Busy, Corrupt):  # the threshold cannot be read
                self._watch_threshold(now_ns)
        try:
            self._declare_emergency(now_ns)
            if self.epoch:
                self.store.write_vitals(self.epoch, vitals)
                return
        except Busy:
            return  # the heartbeat waits for the lock
        except Corrupt:
            self._causes |= EMERGENCY_CORRUPT
        except Lost:
            self._causes |= EMERGENCY_LOST
        self._declare_emergency(now_ns)
        self.store.write_vitals_unlocked(self._predecessor, vitals)

    def _sample(self) -> None:
        """Sample the machine. When that fails, because descriptors have run out, the previous figures stay."""
        try:
            if self.sampler is None:
                self.sampler = Sampler(ROOT, self.clock)
            sample = self.sampler.sample()
        except OSError as error:
            if not self._sampling_failed:  # once per episode
                log.error("CPU and memory cannot be sampled: %s", error)
            self._sampling_failed = True
            return
        self._sampling_failed = False
        for name in (
            "memory_percent", "memory_available_mb", "memory_total_mb", "cpu_percent", "cpu_percent_30s",
            "cpu_count", "disk_percent",
        ):  # fmt: skip
            setattr(self.vitals, name, getattr(sample, name))
        if sample.sampled_ns >= self._footprint_due_ns:
            self._footprint_due_ns = sample.sampled_ns + int(FOOTPRINT_SECONDS * 1e9)
            self.vitals.service_bytes = memory_footprint(ROOT, int(self.vitals.arbiter_pid))

    def _watch_threshold(self, now_ns: int) -> None:
        state = self.store.state()
        for episode in self.drift.observe(
            now_ns, state.scalars.theta, state.settings.min_threshold, state.settings.max_threshold
        ):
            self.vitals.drift_episodes += 1
            log.warning("threshold drift: %s", episode.sentence)
        self.vitals.drift = sum(BITS[kind] for kind in self.drift.active)

    def _declare_emergency(self, now_ns: int) -> None:
        """Write the emergency that follows from the causes into the vitals, and log what changes."""
        full = EMERGENCY_MEMORY if self.vitals.memory_percent >= MEMORY_PERCENT.value else 0
        self._log_changes(self.emergency.observe(self.block.log_time(now_ns), self._causes | full))
        self.vitals.emergency = self.emergency.in_force
        self.vitals.emergency_overruled = self.emergency.overruled
        self.vitals.emergency_since_ns = self.emergency.since_ns

    def _log_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.began:
                self.vitals.emergency_episodes += 1
                log.error("emergency: %s", change.sentence)
            else:
                log.warning("emergency over: %s", change.sentence)


def _per_round(count: int) -> int:
    """Return how many of `count` elements to check in a round, so that SCRUB_SECONDS suffice for all."""
    return math.ceil(count * INTERVAL_SECONDS / SCRUB_SECONDS)


def run(
    block: Block,
    config: Config,
    arbiter: process.Identity,
    prepare: Callable[[Controller], None] = lambda _controller: None,
) -> int:
    """Run the controller of a block until SIGTERM, in a fresh child of the arbiter; return the exit status.

    `prepare` is called once, before the first round.
    """
    process.die_with_parent(arbiter.pid)
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)  # a terminal sends them to the whole group; only the arbiter ends it
    block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value // 4, VECTOR_NORM.value)
    try:
        controller = Controller(block, config, arbiter, boot_clock)
        prepare(controller)
        while not stopping:
            began = time.monotonic()
            controller.run_round()
            time.sleep(max(0.001, INTERVAL_SECONDS - (time.monotonic() - began)))
    except Stale:
        if block.is_epoch_damaged:
            log.error("controller pid=%d exits: the epoch was damaged, and its successor repairs it", os.getpid())
            return 1
        log.info("controller pid=%d is superseded and exits", os.getpid())
        return SUPERSEDED
    except StoreError as error:
        log.error("controller pid=%d exits: %s", os.getpid(), error)
        return 1
    return 0
