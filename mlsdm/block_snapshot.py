"""A read-only snapshot of a live server, as plain values: of its block, and of the record of its arbiter.

Invariants:
- The block is mapped read-only and the lock is never taken; the server is neither asked nor changed.
- The committed state is read whole at one position and validated like every lock-free read. When a fast writer
  overtakes all tries of the native core, the read is repeated.
- Counters of other writers (rows, lock, vitals) are single words, read at different moments: each is exact, but they
  are not consistent with each other.

A process is identified by pid and start time, so `alive` is never true of a later process with the same pid. It is None
for a server in another pid namespace (a container seen from its host), whose pids cannot be checked from here.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from app.processes.arbiter_record import ReloadResult, state_of
from app.telemetry.lost_lines import lost_lines_of
from core.clock import elapsed_seconds
from core.controller.emergency import ReasonName, reason_names
from core.controller.threshold_drift import BITS
from core.phases import PHASE_NAMES
from mlsdm.process_usage import ProcessUsage
from shm.block import Block
from shm.errors import Busy, Gone, StoreError
from shm.layout import FLAG_STOPPED, KINDS, LAYOUT_VERSION, LOST
from shm.process import Identity, process_of_thread
from shm.process import state_of as state_of_process
from shm.records import EntryPointer, decided_of
from shm.store import Store

ATTEMPTS: Final = 100  # each makes four tries in the native core; the first attempt nearly always succeeds
ATTEMPT_SECONDS: Final = 0.001
RECENT_EVENTS: Final = 100  # whose acceptance is shown
_RECENT_ENTRIES: Final = 1_000  # of the log, in which these events are looked for
_DECISION: Final = KINDS.index("decision")
_STOPPED: Final = frozenset({"T", "t"})  # proc_pid_stat(5): by a signal, by a debugger


class Sizes(msgspec.Struct, frozen=True):
    """The sizes of the block's layout. `block_size`, `payload_size_max` and all that end in `_size` are in bytes."""

    dimension: int
    capacity: int
    payload_size_max: int
    log_capacity: int
    rows: int
    receipt_capacity: int
    slack: int
    namespaces: int
    pins_max: int
    archivist_size: int
    identity_size: int
    modules_size: int
    outbox_size: int
    block_size: int


class Recent(msgspec.Struct, frozen=True):
    """The newest decisions of the log, RECENT_EVENTS at most. `seconds` is the age of the oldest of them."""

    events: int
    accepted: int
    seconds: float


class State(msgspec.Struct, frozen=True):
    """The committed state at `position`. `memories` counts live ones; `phase_steps_left` is until the phase changes;
    `threshold_min` and `threshold_max` are the bounds in force.
    """

    position: int
    log_oldest: int
    total: int
    accepted: int
    rejected: int
    memories: int
    threshold: float
    ema: float
    phase: str
    phase_steps_left: int
    step: int
    level_norms: tuple[float, float, float]
    stopped: bool
    epoch: int
    threshold_min: float
    threshold_max: float
    recent: Recent


class Worker(msgspec.Struct, frozen=True):
    """A worker row that has an owner."""

    row: int
    pid: int
    alive: bool | None
    connections: int
    requests: int
    heartbeat_age_seconds: float


class Controller(msgspec.Struct, frozen=True):
    """The controller that wrote the vitals, and its counters. `pid` 0: none has written yet.

    `arbiter_stopped`: the arbiter is alive and runs no code, because of a signal or a debugger.
    """

    pid: int
    alive: bool | None
    heartbeat_age_seconds: float | None
    arbiter_pid: int
    arbiter_alive: bool | None
    scrubbed: int
    torn: int
    drift_episodes: int
    late_steps: int
    arbiter_stopped: bool | None


class Lock(msgspec.Struct, frozen=True):
    """The lock. `holder_pid` is the process in the critical section now, or 0; the other fields are counters."""

    holder_pid: int
    acquisitions: int
    deaths: int
    rollbacks: int
    kills: int
    lost: bool


class EmergencyState(msgspec.Struct, frozen=True):
    """The emergency: `reasons` in force, named as in `core.controller.emergency`; `overruled` reasons that persist but
    that an operator has overruled. `since_seconds` is the age of the oldest reason in force.
    """

    reasons: list[ReasonName]
    overruled: list[ReasonName]
    since_seconds: float | None
    episodes: int


class Arbiter(msgspec.Struct, frozen=True):
    """What the arbiter has recorded since its start.

    `last_reload` is the result of the start or of the last reload, `last_reload_age_seconds` its age; `reloads` are
    counts by result, `workers_killed` counts by reason; `log_lines_lost` is None when it cannot be read.
    """

    last_reload: str
    last_reload_age_seconds: float
    reloads: dict[str, int]
    workers_killed: dict[str, int]
    log_lines_lost: int | None

    @property
    def reload_succeeded(self) -> bool:
        """Whether the configuration that was read last is in force as a whole."""
        return self.last_reload == ReloadResult.SUCCEEDED.name.lower()


class Machine(msgspec.Struct, frozen=True):
    """The controller's newest samples, in percent of the container's limits."""

    memory_percent: float
    cpu_percent: float
    cpu_percent_30s: float
    disk_percent: float


class Snapshot(msgspec.Struct, frozen=True):
    """All of it. When the state cannot be read, `state` is None and `problem` says why. `drift` names the kinds of
    threshold drift that are going on (`core.controller.threshold_drift`).
    """

    boot_id: str
    log_id: str
    age_seconds: float
    layout_version: int
    sizes: Sizes
    state: State | None
    problem: str | None
    controller: Controller
    workers: list[Worker]
    lock: Lock
    emergency: EmergencyState
    drift: list[str]
    machine: Machine
    arbiter: Arbiter | None = None  # None when its record cannot be read
    processes: Sequence[ProcessUsage] = ()  # empty for a server in another pid namespace

    @property
    def abandoned(self) -> bool:
        """True when every process that served this block has certainly ended; only observers still map it."""
        controller = self.controller
        known = [worker.alive for worker in self.workers] + [controller.alive, controller.arbiter_alive]
        return controller.pid != 0 and not any(alive is not False for alive in known)


def take_snapshot(block: Block, now_ns: int, *, foreign: bool) -> Snapshot:
    """Return a snapshot of `block`. `now_ns` is CLOCK_BOOTTIME; `foreign`: its pids are of another namespace."""
    state, problem, time_ns = None, None, block.log_time(now_ns)
    try:
        state = _read_state(Store(block), time_ns)
    except StoreError as error:
        problem = f"{type(error).__name__.lower()}: {error}"
    layout = block.layout
    return Snapshot(
        boot_id=block.boot_id,
        log_id=block.log_id,
        age_seconds=elapsed_seconds(block.created_ns, time_ns),
        layout_version=LAYOUT_VERSION,  # a block of another version is not mapped at all
        sizes=Sizes(*layout, layout.block_size),
        state=state,
        problem=problem,
        controller=_read_controller(block, now_ns, foreign),
        workers=_read_workers(block, now_ns, foreign),
        lock=_read_lock(block),
        emergency=_read_emergency(block, time_ns),
        drift=[kind for kind, bit in BITS.items() if block.region("vitals").drift & bit],
        machine=Machine(*(getattr(block.region("vitals"), name) for name in Machine.__struct_fields__)),
    )


def read_arbiter(pid: int, now: float) -> Arbiter | None:
    """Return the record of the arbiter of a server, None if there is none. `pid` is of the arbiter or of a process that
    it has forked; `now` is in Unix seconds.
    """
    state = state_of(pid)
    if state is None or not state.loaded_at:
        return None
    lost = lost_lines_of(pid, state.lost_lines_descriptor) if state.lost_lines_descriptor >= 0 else None
    age_seconds = max(0.0, now - state.loaded_at)
    return Arbiter(state.last_result, age_seconds, state.reloads, state.workers_killed, lost)


def is_foreign(pid: int) -> bool:
    """Return whether a process is in another pid namespace, so that its pids are meaningless here."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    except OSError:
        return False  # it has just ended


def _read_state(store: Store, time_ns: int) -> State:
    for _ in range(ATTEMPTS):
        try:
            state, norms = store.levels()
            _, oldest = store.entries(state.position, 0)
            first = max(oldest, state.position + 1 - _RECENT_ENTRIES)
            entries, _ = store.entries(first, state.position + 1 - first)
        except (Busy, Gone):  # Gone: a short log wrapped around between two reads
            time.sleep(ATTEMPT_SECONDS)
            continue
        scalars = state.scalars
        return State(
            position=state.position,
            log_oldest=oldest,
            total=scalars.accepted + scalars.rejected,
            accepted=scalars.accepted,
            rejected=scalars.rejected,
            memories=scalars.live,
            threshold=scalars.theta,
            ema=scalars.ema,
            phase=PHASE_NAMES[scalars.phase],
            phase_steps_left=scalars.counter,
            step=scalars.step,
            level_norms=norms,
            stopped=bool(scalars.flags & FLAG_STOPPED),
            epoch=store.block.epoch,
            threshold_min=state.settings.min_threshold,
            threshold_max=state.settings.max_threshold,
            recent=_recent(entries, time_ns),
        )
    raise Busy(f"it changed during each of {ATTEMPTS} reads")


def _recent(entries: Sequence[EntryPointer], time_ns: int) -> Recent:
    decisions = [entry for entry in entries if entry.kind == _DECISION][-RECENT_EVENTS:]
    accepted = sum(decided_of(entry).memory_id != 0 for entry in decisions)
    seconds = elapsed_seconds(decisions[0].time_ns, time_ns) if decisions else 0.0
    return Recent(len(decisions), accepted, seconds)


def _read_controller(block: Block, now_ns: int, foreign: bool) -> Controller:
    vitals = block.region("vitals")
    controller = Identity(int(vitals.controller_pid), int(vitals.controller_started))
    arbiter = Identity(int(vitals.arbiter_pid), int(vitals.arbiter_started))
    return Controller(
        pid=controller.pid,
        alive=_alive(controller, foreign),
        heartbeat_age_seconds=elapsed_seconds(vitals.heartbeat_ns, now_ns) if controller.pid else None,
        arbiter_pid=arbiter.pid,
        arbiter_alive=_alive(arbiter, foreign),
        scrubbed=vitals.scrubbed,
        torn=vitals.torn,
        drift_episodes=vitals.drift_episodes,
        late_steps=vitals.late_steps,
        arbiter_stopped=None if foreign else arbiter.alive and state_of_process(arbiter.pid) in _STOPPED,
    )


def _read_workers(block: Block, now_ns: int, foreign: bool) -> list[Worker]:
    workers = []
    for number in range(block.layout.rows):
        row = block.region("rows", number)
        owner = block.row_owner(number)
        if owner.pid:
            heartbeat_age_seconds = elapsed_seconds(row.heartbeat_ns, now_ns)
            alive = _alive(owner, foreign)
            workers.append(Worker(number, owner.pid, alive, row.connections, row.requests, heartbeat_age_seconds))
    return workers


def _read_lock(block: Block) -> Lock:
    lock, owner = block.region("lock"), block.mutex_owner()
    # The mutex names the thread. `holder` is written a moment later and is used when the thread is not visible.
    holder_pid = process_of_thread(owner) or int(lock.holder) if owner else 0
    lost = lock.lost == LOST
    if lost:
        holder_pid = 0  # of a lost mutex the word names a process that only tried to acquire it
    return Lock(holder_pid, lock.acquisitions, lock.deaths, lock.rollbacks, block.region("vitals").lock_kills, lost)


def _read_emergency(block: Block, time_ns: int) -> EmergencyState:
    vitals = block.region("vitals")
    reasons, overruled = list(reason_names(int(vitals.emergency))), list(reason_names(int(vitals.emergency_overruled)))
    since_seconds = elapsed_seconds(vitals.emergency_since_ns, time_ns) if reasons else None
    return EmergencyState(reasons, overruled, since_seconds, vitals.emergency_episodes)


def _alive(process: Identity, foreign: bool) -> bool | None:
    return None if foreign else process.alive
