"""The world: workers, controllers and a clock, driven by one seed through everything that can happen to them.

In each step the scheduler picks an actor. An idle actor gets an operation and completes it or is stopped on the way: at
the entry of the native function, where it takes or releases the mutex, or up to some thousand instructions later. A
stopped actor completes, continues for some instructions, or is killed. The successor of a dead actor claims its row or
takes over from it; controllers also take over from living ones, which continue with a stale epoch. The times that are
given advance, jump ahead by years and fall back. At times a fault of the block or the machine is injected (`faults`);
then the real controllers declare an emergency, which is judged as well.

Nothing else runs, so a run depends on its seed only, as far as the machine allows (`__main__`). After every step the
whole block is inspected; an answer is judged as soon as it exists.

Rejected: simulated threads over a model of the block. They would prove the model; what can break is the C code, between
two instructions.
"""

import hashlib
import itertools
import random
import signal
from collections import Counter, deque
from types import FrameType
from typing import Any, Final, Literal, Self

from shm.errors import StoreError
from shm.layout import NO_ROW
from testing.block_fixture import NORM_MAX, Formed
from tests.simulation.actor import CALLS, ROUND, Actor, Place, Trails, address_of
from tests.simulation.buckets import Buckets
from tests.simulation.emergencies import Emergencies
from tests.simulation.faults import FULL, Faults
from tests.simulation.history import History, WrongError
from tests.simulation.inspection import Inspection
from tests.simulation.judge import Judge
from tests.simulation.player import Operation, Outcome
from tests.simulation.trace import Trace
from tests.simulation.workload import LAYOUT, REGIMES, TOKEN_OPERATIONS, WORKERS, Workload

CONTROLLERS: Final = 2
STUCK_SECONDS: Final = 60  # for one step, which takes some milliseconds; beyond that an actor loops
LOGGED_STEPS: Final = 40  # steps that are printed before a failure
LOG_LINE_LENGTH_MAX: Final = 400  # characters of one step
CONTROLLER_OPERATIONS: Final = ("take_over", "apply", "round")
# Those that hardly ever hold the lock.
READ_OPERATIONS: Final = (
    "recall", "read_state", "read_tallies", "read_memory", "read_entries", "scrub", *TOKEN_OPERATIONS,
)  # fmt: skip
UNTOUCHED_CHECK_STEPS: Final = 200  # between two checks of the bytes that nothing writes

# Probability, per step, that a fault is injected without a fault or emergency, that one is injected during a cooldown,
# and that a present fault is repaired.
FAULT_PROBABILITY: Final = 0.0025
FAULT_AGAIN_PROBABILITY: Final = 0.025
REPAIR_PROBABILITY: Final = 0.03


def shorten(sentence: str) -> str:
    """Return a sentence, cut to LOG_LINE_LENGTH_MAX."""
    return sentence if len(sentence) <= LOG_LINE_LENGTH_MAX else f"{sentence[:LOG_LINE_LENGTH_MAX]} …"


class FailedError(Exception):
    """A promise was broken; the message says which, after which steps, and how to repeat the run."""


class World:
    """One block and the actors that use it. `step` moves one of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self._log_lines: deque[str] = deque(maxlen=LOGGED_STEPS)
        self._digest = hashlib.sha256()
        state = random.getstate()
        random.seed(seed)  # the clock of the block begins at a random time
        self.formed = Formed(LAYOUT, REGIMES[0])
        random.setstate(state)
        self.formed.block.bind(0, NO_ROW, 0, NORM_MAX)  # from here on this process only reads
        self.history = History(self.formed)
        self.faults = Faults(self.formed, self.random)
        self.workload = Workload(self.random, self.formed, self.history, self.faults)
        self.inspection = Inspection(self.formed, self.history, self.faults)
        self.emergencies = Emergencies(self.formed, self.history, self.faults)
        self.judge = Judge(self.history)
        self.buckets = Buckets(self.formed, WORKERS)
        self.traces: dict[str, Trace] = {}
        self.actors: list[Actor] = []
        self._spawned_count = 0
        self.trails: dict[str, Trails] = {}  # all instructions that were stopped at, by operation

    def __enter__(self) -> Self:
        self._old_handler = signal.signal(signal.SIGALRM, self._stuck)
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._old_handler)
        for actor in self.actors:
            actor.kill()
        self.formed.close()

    @property
    def digest(self) -> str:
        """A hash of all steps and answers, equal for two equal runs."""
        return self._digest.hexdigest()[:16]

    def run(self, steps: int) -> None:
        """Take some steps. Raises FailedError."""
        try:
            for _ in range(steps):
                signal.alarm(STUCK_SECONDS)
                self.step()
        except (WrongError, AssertionError, StoreError) as error:
            told = "\n".join(self._log_lines)
            again = f"python -m tests.simulation --seed {self.seed} --steps {self.steps}"
            raise FailedError(f"{told}\n\nstep {self.steps}: {error or repr(error)}\nagain: {again}") from error
        finally:
            signal.alarm(0)

    @staticmethod
    def _stuck(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"did not end within {STUCK_SECONDS} s")

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Move one actor, or inject or repair a fault. Raises WrongError."""
        self.steps += 1
        self.workload.pass_time()
        if self.faults.causes:
            probability = REPAIR_PROBABILITY
        else:
            probability = FAULT_AGAIN_PROBABILITY if self.emergencies.words.in_force else FAULT_PROBABILITY
        if self.random.random() < probability and self._inject_or_repair():
            return
        if len(self.actors) < WORKERS + CONTROLLERS and self.random.random() < 0.5:
            self._spawn()
        actor = self._pick_actor()
        standing = actor.operation is not None
        if self.random.random() < (0.4 if actor.pid == self._holder() else 0.1 if standing else 0.005):
            self._kill(actor)
            return
        if not standing:
            paying = any(trace.operation.name in TOKEN_OPERATIONS for trace in self.traces.values())
            alarmed = self.emergencies.words.in_force != 0
            begun = actor.row != NO_ROW if actor.name.startswith("worker") else self.emergencies.knows(actor.name)
            actor.give(self.workload.next_operation(actor, begun=begun, paying=paying, alarmed=alarmed))
            assert actor.operation is not None
            self.traces[actor.name] = self.trace(actor.operation)
            self._track_tokens(actor)
            if actor.operation.name == "take_over":
                actor.epoch = 0
        trace = self.traces[actor.name]
        operation = trace.operation
        contended = self._holder() not in (0, actor.pid) and not self.faults.is_loss_reported
        made = trace.made
        entered = len(made)
        step = self.emergencies.begin_step(trace, held=self._holder() == actor.pid, contended=contended)
        outcome, how = self._moved(actor, standing)
        actor.operation = operation  # it may be done; the inspection needs its operation
        self._log(f"{actor.name} {operation} {how}: {outcome or 'stopped'}")
        self.inspection.look(actor, made)
        step.made = made[entered:]
        self.emergencies.look(actor, trace)
        self.buckets.look(actor.name, f"{actor.name}'s {operation}")
        for under_way in self.traces.values():
            under_way.pendings.append(self.history.pending)
        if outcome:
            actor.operation = None
            self._settle(actor, outcome, trace)
        self.inspection.look_at_rows(self.actors)
        if self.steps % UNTOUCHED_CHECK_STEPS == 0:
            self.buckets.look_at_the_rest()
        oldest = min((trace.began for trace in self.traces.values()), default=self.history.newest)
        self.history.forget_before(oldest)

    def trace(self, operation: Operation) -> Trace:
        """Return the trace of an operation that begins now."""
        history = self.history
        return Trace(operation, history.newest, history.commands, [history.pending])

    def _moved(self, actor: Actor, standing: bool) -> tuple[Outcome | None, str]:
        """Move an actor to the end of its operation or to a chosen instruction; returns its outcome, and where it was
        to stop.

        Instructions that were reached by single steps are recorded, and a later actor is run there directly.
        """
        assert actor.operation is not None
        if self.random.random() < (0.5 if standing else 0.65):
            return actor.finish(), "to its end"
        trails = self.trails.setdefault(actor.operation.name, ({}, {}))
        reads = actor.operation.name in READ_OPERATIONS
        held = bool(trails[True]) and self.random.random() < (0.2 if reads else 0.8)
        if trails[held] and self.random.random() < 0.85:
            number = self.random.randrange(len(trails[held]))
            outcome = actor.go_to(next(itertools.islice(trails[held], number, None)))
            return outcome, f"to known instruction {number} {'with' if held else 'without'} the lock"
        instructions = self.random.randrange(2_000 if self.random.random() < 0.5 else 60)
        if standing:
            return actor.advance(instructions, trails), f"for {instructions} instructions"
        place: Place = self.random.choices(("call", "section", "leaving"), (2, 5, 2))[0]
        if actor.operation.name in TOKEN_OPERATIONS:
            place, instructions = "call", self.random.randrange(160)
        calls = ROUND if actor.operation.name == "round" else (CALLS[actor.operation.name],)
        address = address_of(place, self.random.choice(calls))
        outcome = actor.go_to(address) or actor.advance(instructions, trails)
        return outcome, f"to {place} and {instructions} instructions"

    def _settle(self, actor: Actor, outcome: Outcome, trace: Trace) -> None:
        del self.traces[actor.name]
        if trace.operation.name in TOKEN_OPERATIONS:
            self.buckets.judge(actor.name, f"{actor.name}'s {trace.operation} answered {outcome}", outcome.value)
        else:
            self.judge.judge(actor, outcome, trace)
        operation = trace.operation
        self.counts[f"{operation.name} {outcome.status}"] += 1
        if operation.name == "round" and outcome.status == "Stale":
            self._kill(actor)  # a superseded controller exits
        if outcome.status != "ok":
            return
        if operation.name in CONTROLLER_OPERATIONS:
            self._govern(actor, outcome.value, trace)
        elif operation.name == "claim":
            actor.row = outcome.value
        elif operation.name == "release":
            actor.row = NO_ROW
        elif operation.name == "post":
            actor.tickets = [*actor.tickets[-2:], outcome.value]
        elif operation.name == "withdraw":
            actor.tickets.remove(operation.arguments[0])
        elif operation.name == "spend":
            self.counts["refused tokens"] += outcome.value < 0
            if outcome.value >= 0:
                actor.paid = [*actor.paid[-4:], operation.arguments[1:]]
        elif operation.name == "refund":
            actor.paid.remove(operation.arguments)
        elif operation.name in ("admit", "batch"):
            decisions = [outcome.value] if operation.name == "admit" else outcome.value[0]
            self.counts["repeated"] += sum(decision.repeated for decision in decisions)

    def _govern(self, actor: Actor, value: Any, trace: Trace) -> None:
        """Pass what a controller answered about emergencies to `Emergencies`."""
        what = f"{actor.name}'s {trace.operation}"
        if trace.operation.name == "take_over":
            self.emergencies.inherit(actor, trace, value[0])
        elif trace.operation.name == "apply":
            self.emergencies.hear(actor, what, trace, value[1])
        else:
            self.emergencies.judge(actor, trace, value, contended=trace.contended)
            self.counts["emergencies begin"] += sum(said.startswith("emergency: ") for said in value.logged)
            self.counts["emergencies end"] += sum(said.startswith("emergency over") for said in value.logged)

    def _inject_or_repair(self) -> bool:
        """Inject or repair a fault; return False when the chosen one is not possible now."""
        faults, untouched = self.faults, self.faults.is_lock_lost or self._holder() == 0
        repairs = bool(faults.causes) and self.random.random() < 0.8
        what = self.random.choices(("memory", "block", "mutex"), (12, 8, 1))[0]
        if what == "memory" and repairs == (faults.memory_percent >= FULL):
            self._log(faults.change_memory())
        elif what == "block" and repairs == faults.is_corrupt and untouched:
            self._log(faults.restore() if repairs else faults.corrupt_state(self.history.newest))
        elif what == "mutex" and repairs == faults.is_lock_lost and untouched:
            for actor in [*self.actors] if repairs else []:
                self._kill(actor)
            self._log(faults.renew_mutex() if repairs else faults.lose_mutex())
        else:
            return False
        self.counts[f"{what} {'repaired' if repairs else 'injected'}"] += 1
        return True

    def _kill(self, actor: Actor) -> None:
        held = self._holder() == actor.pid
        self._log(f"{actor.name} {actor.operation or ''} dies{' with the lock' * held}")
        actor.kill()
        self.counts["died with the lock" if held else "died in an operation" if actor.operation else "died idle"] += 1
        trace = self.traces.pop(actor.name, None)
        self.buckets.end(actor.name)
        self.emergencies.end(actor.name)
        self.actors.remove(actor)
        if trace:
            self.inspection.look(actor, trace.made)

    def _spawn(self) -> None:
        workers = sum(actor.name.startswith("worker") for actor in self.actors)
        kind: Literal["worker", "controller"] = "worker" if workers < WORKERS else "controller"
        self._spawned_count += 1
        self.actors.append(Actor(f"{kind}-{self._spawned_count}", self.formed))

    def _pick_actor(self) -> Actor:
        """Return the actor to move: often the holder of the lock, because no other gets far meanwhile."""
        if not self.actors:
            self._spawn()
        holders = [actor for actor in self.actors if actor.pid == self._holder()]
        return self.random.choice(holders if holders and self.random.random() < 0.4 else self.actors)

    def _holder(self) -> int:
        return self.formed.block.mutex_owner()

    def _log(self, sentence: str) -> None:
        self._log_lines.append(f"{self.steps}: {shorten(sentence)}")
        self._digest.update(sentence.encode())

    def _track_tokens(self, actor: Actor) -> None:
        operation = actor.operation
        assert operation is not None
        if operation.name == "spend":
            now_ns, account, count = operation.arguments
            self.buckets.begin(actor.name, account, count, now_ns)
        elif operation.name == "refund":
            account, count = operation.arguments
            self.buckets.begin(actor.name, account, count, None)
