"""The player: carries out operations on the block, one at a time, in a child of the simulator.

It calls the real native core through the real store; nothing is a model. An `Operation` is a name with picklable
arguments, times and seeds included: a player decides nothing itself. It returns an `Outcome` in plain values, copied
out of the block.
"""

import logging
from typing import Any, Final, NamedTuple

import numpy as np

from core.controller.controller import Controller
from core.controller.emergency import Change, Emergency
from core.limits import EMERGENCY_COOLDOWN_SECONDS
from core.machine.sampler import MachineSample
from core.phases import PhaseWindow, phase_masks
from core.reference.log_replay import Scalars
from core.regime import Regime
from core.settings.config import Config
from shm import process
from shm._native import ffi
from shm.bucket import Bucket
from shm.errors import StoreError
from shm.layout import NO_ROW
from shm.recall import Recall
from shm.records import NO_IDEMPOTENCY_HASH, new_idempotency_hash
from shm.store import Decision, Memory, Store
from testing.block_fixture import NORM_MAX, Formed, Pool
from tests.simulation.accounts import ACCOUNTS

WAIT_MS: Final = 1  # while one actor runs, the holder of the lock is stopped, so waiting longer changes nothing
PHASE_TOLERANCE: Final = 0.15
CONFIG: Final = Config()  # used by a first controller only, and there has been one

KeyOf = tuple[int, int, int]  # two words and a body


class Operation(NamedTuple):
    """What a player is asked to do: the name of one of its methods, and the arguments."""

    name: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}{self.arguments}"


class Outcome(NamedTuple):
    """The result: `status` is "ok" with a value, or the name of an exception of `shm.errors`."""

    status: str
    value: Any = None


class Seen(NamedTuple):
    """The committed state, as a reader was given it."""

    position: int
    scalars: Scalars
    levels: bytes
    receipts: int
    time_ns: int


class Observation(NamedTuple):
    """One input of an emergency: the causes seen at a time, or an operator's order if `causes` is None."""

    time_ns: int
    causes: int | None


class RoundResult(NamedTuple):
    """The state of a controller's emergency after a round, and what it logged about emergencies."""

    heard: list[Observation]
    in_force: int
    overruled: int
    since_ns: int
    logged: list[str]


class _RecordingEmergency(Emergency):
    """An emergency that records its inputs since the last call of `heard`."""

    def __init__(self, left: Emergency) -> None:
        cooldown_ns = EMERGENCY_COOLDOWN_SECONDS.value * 1_000_000_000
        super().__init__(cooldown_ns, left.in_force, left.overruled, left.since_ns)
        self._heard: list[Observation] = []

    def observe(self, time_ns: int, causes: int) -> list[Change]:
        self._heard.append(Observation(time_ns, causes))
        return super().observe(time_ns, causes)

    def overrule(self) -> list[Change]:
        self._heard.append(Observation(0, None))
        return super().overrule()

    def heard(self) -> list[Observation]:
        heard, self._heard = self._heard, []
        return heard


class _Machine:
    """A sampler that reports `percent` as the use of memory."""

    percent = 0.0

    def sample(self) -> MachineSample:
        return MachineSample(
            sampled_ns=0, memory_percent=self.percent, memory_available_mb=0, memory_total_mb=0, cpu_percent=0,
            cpu_percent_30s=0, cpu_count=1, disk_percent=0,
        )  # fmt: skip


class _UnwatchedController(Controller):
    """A real controller that kills no lock holder, because here the scheduler has stopped it."""

    def watch_lock(self) -> None:
        pass


class _Log(logging.Handler):
    """What the controller logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.logged: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record.getMessage())


class Player:
    """One process on the block: a worker once it has a row, a controller once it has an epoch."""

    def __init__(self, formed: Formed) -> None:
        self.block = formed.block
        self.pool: Pool = formed.pool
        self.me = process.identify_self()
        self.row = NO_ROW
        self.controller: Controller | None = None
        self.now_ns = 0
        self.machine = _Machine()
        self.log = _Log()
        logging.getLogger("mlsdm").addHandler(self.log)
        logging.getLogger("mlsdm").propagate = False
        self._be(NO_ROW)
        self.store = Store(self.block)
        self.recaller = Recall(self.block)

    def play(self, operation: Operation) -> Outcome:
        """Carry out one operation."""
        try:
            return Outcome("ok", getattr(self, operation.name)(*operation.arguments))
        except StoreError as error:
            return Outcome(type(error).__name__)

    def _be(self, row: int) -> None:
        self.row = row
        self.block.bind(self.me.pid, row, WAIT_MS, NORM_MAX)

    # -- a worker's ----------------------------------------------------------------------------------------------------

    def claim(self) -> int:
        self._be(self.store.claim_row(self.me))
        return self.row

    def release(self) -> None:
        self.store.release_row(self.row, self.me)
        self._be(NO_ROW)

    def admit(self, time_ns: int, number: int, payload: bytes, key: KeyOf | None) -> Decision:
        moral, vector = self.pool.event(number)
        return self.store.admit(
            time_ns, moral, vector, payload, new_idempotency_hash(key[:2], key[2]) if key else NO_IDEMPOTENCY_HASH
        )

    def batch(
        self, time_ns: int, numbers: list[int], payloads: list[bytes], key: KeyOf | None
    ) -> tuple[list[Decision], int]:
        events = [self.pool.event(number) for number in numbers]
        fields, status = self.store.admit_batch(
            time_ns,
            np.array([moral for moral, _ in events]),
            np.stack([vector for _, vector in events]),
            payloads,
            new_idempotency_hash(key[:2], key[2]) if key else NO_IDEMPOTENCY_HASH,
        )
        return [Decision(*decision) for decision in fields], status

    def forget(self, time_ns: int, memory_id: int) -> bytes:
        return image_of(self.store.forget(time_ns, memory_id))

    def lose(self, time_ns: int, memory_id: int) -> bytes | None:
        entry = self.store.lose(time_ns, memory_id)
        return image_of(entry) if entry else None

    def recall(self, number: int, k: int, window: PhaseWindow) -> tuple[list[tuple[Any, ...]], int, int]:
        answer = self.recaller.nearest(self.pool.event(number)[1], k, phase_masks(window, PHASE_TOLERANCE), True, True)
        found = [(m.id, m.score, m.moral, m.time_ns, m.phase, m.payload, m.vector) for m in answer.matches]
        return found, answer.as_of, answer.corrupt_id

    def read_state(self) -> Seen:
        state, _ = self.store.levels()
        scalars = Scalars.of(state.scalars)
        return Seen(state.position, scalars, self.store.level_bytes(), state.receipts, state.time_ns)

    def read_tallies(self) -> tuple[int, int, int]:
        return self.store.tallies()

    def read_memory(self, memory_id: int) -> Memory:
        return self.store.memory(memory_id)

    def read_entries(self, first: int, count: int) -> tuple[list[bytes], int]:
        entries, oldest = self.store.entries(first, count)
        return [image_of(entry) for entry in entries], oldest

    def post(self, kind: str, regime: Regime | None, configured: int, after: int) -> int:
        return self.store.post_command(kind, regime and regime.to_record(), configured, after)

    def withdraw(self, ticket: int) -> bool:
        return self.store.withdraw_command(ticket)

    def spend(self, now_ns: int, account: int, count: int) -> int:
        return Bucket(self.block, *ACCOUNTS[account]).spend(now_ns, count)

    def refund(self, account: int, count: int) -> None:
        Bucket(self.block, *ACCOUNTS[account]).refund(count)

    # -- a controller's ------------------------------------------------------------------------------------------------

    def take_over(self, now_ns: int) -> tuple[tuple[int, int, int], int]:
        """Become a new controller; returns the emergency fields that it found, and its epoch, 0 if it has none yet."""
        self.now_ns = now_ns
        self.controller = made = _UnwatchedController(self.block, CONFIG, process.Identity(0, 0), lambda: self.now_ns)
        made.emergency = left = _RecordingEmergency(made.emergency)
        made.sampler = self.machine  # type: ignore[assignment]  # it has the one method that is called
        return (left.in_force, left.overruled, left.since_ns), made.epoch

    def tick(self, time_ns: int) -> bytes:
        return image_of(self.store.tick(time_ns, self._current_controller.epoch))

    def apply(self, now_ns: int) -> tuple[bytes | None, list[Observation]]:
        controller = self._current_controller
        entry = controller.store._entry
        entry.position = 0
        controller.apply_pending_command(now_ns)
        return image_of(entry) if entry.position else None, self._emergency.heard()

    def round(self, now_ns: int, memory_percent: float) -> RoundResult:
        """Run one round of the controller, without the watch over the lock."""
        self.now_ns, self.machine.percent = now_ns, memory_percent
        self.log.logged.clear()
        self._current_controller.run_round()
        emergency = self._emergency
        said = [sentence for sentence in self.log.logged if sentence.startswith("emergency")]
        return RoundResult(emergency.heard(), emergency.in_force, emergency.overruled, emergency.since_ns, said)

    @property
    def _current_controller(self) -> Controller:
        assert self.controller is not None
        return self.controller

    @property
    def _emergency(self) -> _RecordingEmergency:
        emergency = self._current_controller.emergency
        assert isinstance(emergency, _RecordingEmergency)
        return emergency

    def scrub(self) -> list[tuple[bool, int]]:
        return [self.store.check_slot(slot) for slot in range(self.block.layout.slots)]


def image_of(entry: Any) -> bytes:
    """Return a copy of the bytes of a log entry."""
    return bytes(ffi.buffer(entry, ffi.sizeof("struct mlsdm_entry")))
