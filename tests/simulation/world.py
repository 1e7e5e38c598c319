"""The world: workers, controllers and a clock, driven by one seed through everything that can happen to them.

In each step the scheduler picks an actor. An idle one gets an operation and completes it or is stopped on the way: at
the entry of the native function, where it takes or releases the mutex, or up to some thousand instructions later. A
stopped one completes, continues for some instructions, or is killed. A successor of a dead one claims its row or takes
over from it; controllers also take over from living ones, which continue with a stale epoch. The clock advances, jumps
ahead by years and falls back. At times the block or the machine is damaged (`harm`); then the real controllers declare
an emergency, which is judged as well.

Nothing else moves, so a run depends on its seed as far as the machine allows (`__main__`). After every step the whole
block is inspected; an answer is judged as soon as it exists.

Rejected: simulated threads over a model of the block. They would prove the model; what can break is the C code,
between its instructions.
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
from tests.simulation.alarm import Alarm
from tests.simulation.buckets import Buckets
from tests.simulation.chronicle import Chronicle, WrongError
from tests.simulation.course import Course
from tests.simulation.errands import LAYOUT, PAID, REGIMES, WORKERS, Errands
from tests.simulation.harm import FULL, Harm
from tests.simulation.inspection import Inspection
from tests.simulation.judge import Judge
from tests.simulation.player import Operation, Outcome

CONTROLLERS: Final = 2
STUCK_SECONDS: Final = 60  # for one step, which takes some milliseconds: an actor that runs in circles
TOLD: Final = 40  # steps before a failure
TOLD_LENGTH: Final = 400  # characters of each
CONTROLS: Final = ("take_over", "apply", "round")
READS: Final = ("recall", "look", "add_up", "read", "page", "scrub", *PAID)  # for the most part
REST_STEPS: Final = 200  # between two looks at what nobody writes

# How often, of all steps, something befalls block or machine while nothing is the matter, while a cooldown goes on, and
# while something is the matter.
HARMED: Final = 0.0025
HARMED_AGAIN: Final = 0.025
MENDED: Final = 0.03


def shorten(sentence: str) -> str:
    """Return what a screen can hold of a sentence."""
    return sentence if len(sentence) <= TOLD_LENGTH else f"{sentence[:TOLD_LENGTH]} …"


class FailedError(Exception):
    """The simulation found something; the message tells what, after which steps, and how to see it again."""


class World:
    """One block and those who live on it. `step` moves one of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self._told: deque[str] = deque(maxlen=TOLD)
        self._digest = hashlib.sha256()
        state = random.getstate()
        random.seed(seed)  # where the clock of the block begins
        self.formed = Formed(LAYOUT, REGIMES[0])
        random.setstate(state)
        self.formed.block.bind(0, NO_ROW, 0, NORM_MAX)  # from here on this process only looks
        self.chronicle = Chronicle(self.formed)
        self.harm = Harm(self.formed, self.random)
        self.errands = Errands(self.random, self.formed.now(), self.chronicle, self.harm)
        self.inspection = Inspection(self.formed, self.chronicle, self.harm)
        self.alarm = Alarm(self.formed, self.chronicle, self.harm)
        self.judge = Judge(self.chronicle)
        self.buckets = Buckets(self.formed, WORKERS)
        self.courses: dict[str, Course] = {}
        self.actors: list[Actor] = []
        self._born = 0
        self.trails: dict[str, Trails] = {}  # of all instructions that were met, by operation

    def __enter__(self) -> Self:
        self._alarm = signal.signal(signal.SIGALRM, self._stuck)
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._alarm)
        for actor in self.actors:
            actor.kill()
        self.formed.close()

    @property
    def digest(self) -> str:
        """What tells one run from another: everything that was done, and everything that was answered."""
        return self._digest.hexdigest()[:16]

    def run(self, steps: int) -> None:
        """Take some steps. Raises FailedError."""
        try:
            for _ in range(steps):
                signal.alarm(STUCK_SECONDS)
                self.step()
        except (WrongError, AssertionError, StoreError) as error:
            told = "\n".join(self._told)
            again = f"python -m tests.simulation --seed {self.seed} --steps {self.steps}"
            raise FailedError(f"{told}\n\nstep {self.steps}: {error or repr(error)}\nagain: {again}") from error
        finally:
            signal.alarm(0)

    @staticmethod
    def _stuck(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"did not end within {STUCK_SECONDS} s")

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Move one actor, or harm them all. Raises WrongError."""
        self.steps += 1
        self.errands.pass_time()
        chance = MENDED if self.harm.causes else HARMED_AGAIN if self.alarm.words.in_force else HARMED
        if self.random.random() < chance and self._harm():
            return
        if len(self.actors) < WORKERS + CONTROLLERS and self.random.random() < 0.5:
            self._bear()
        actor = self._picked()
        standing = actor.operation is not None
        if self.random.random() < (0.4 if actor.pid == self._holder() else 0.1 if standing else 0.005):
            self._kill(actor)
            return
        if not standing:
            paying = any(course.operation.name in PAID for course in self.courses.values())
            alarmed = self.alarm.words.in_force != 0
            begun = actor.row != NO_ROW if actor.name.startswith("worker") else self.alarm.knows(actor.name)
            actor.give(self.errands.of(actor, begun=begun, paying=paying, alarmed=alarmed))
            assert actor.operation is not None
            self.courses[actor.name] = self.course(actor.operation)
            self._pay(actor)
            if actor.operation.name == "take_over":
                actor.epoch = 0
        course = self.courses[actor.name]
        operation = course.operation
        contended = self._holder() not in (0, actor.pid) and not self.harm.known_lost
        made = course.made
        entered = len(made)
        step = self.alarm.begin_step(course, held=self._holder() == actor.pid, contended=contended)
        outcome, how = self._moved(actor, standing)
        actor.operation = operation  # it may be done; the inspection asks what it was doing
        self._tell(f"{actor.name} {operation} {how}: {outcome or 'stands'}")
        self.inspection.look(actor, made)
        step.made = made[entered:]
        self.alarm.look(actor, course)
        self.buckets.look(actor.name, f"{actor.name}'s {operation}")
        for under_way in self.courses.values():
            under_way.pendings.append(self.chronicle.pending)
        if outcome:
            actor.operation = None
            self._settle(actor, outcome, course)
        self.inspection.look_at_rows(self.actors)
        if self.steps % REST_STEPS == 0:
            self.buckets.look_at_the_rest()
        oldest = min((course.began for course in self.courses.values()), default=self.chronicle.newest)
        self.chronicle.forget_before(oldest)

    def course(self, operation: Operation) -> Course:
        """Return the course of an operation that begins now."""
        chronicle = self.chronicle
        return Course(operation, chronicle.newest, chronicle.commands, [chronicle.pending])

    def _moved(self, actor: Actor, standing: bool) -> tuple[Outcome | None, str]:
        """Move an actor, to its end or to where it is to stand; returns its outcome, and how far it was to go.

        Instructions that were met on foot are known from then on, and the next one is brought there at once.
        """
        assert actor.operation is not None
        if self.random.random() < (0.5 if standing else 0.65):
            return actor.finish(), "to its end"
        trails = self.trails.setdefault(actor.operation.name, ({}, {}))
        reads = actor.operation.name in READS
        held = bool(trails[True]) and self.random.random() < (0.2 if reads else 0.8)
        if trails[held] and self.random.random() < 0.85:
            number = self.random.randrange(len(trails[held]))
            outcome = actor.go_to(next(itertools.islice(trails[held], number, None)))
            return outcome, f"to known instruction {number} {'with' if held else 'without'} the lock"
        instructions = self.random.randrange(2_000 if self.random.random() < 0.5 else 60)
        if standing:
            return actor.advance(instructions, trails), f"for {instructions} instructions"
        place: Place = self.random.choices(("call", "section", "leaving"), (2, 5, 2))[0]
        if actor.operation.name in PAID:
            place, instructions = "call", self.random.randrange(160)
        calls = ROUND if actor.operation.name == "round" else (CALLS[actor.operation.name],)
        address = address_of(place, self.random.choice(calls))
        outcome = actor.go_to(address) or actor.advance(instructions, trails)
        return outcome, f"to {place} and {instructions} instructions"

    def _settle(self, actor: Actor, outcome: Outcome, course: Course) -> None:
        del self.courses[actor.name]
        if course.operation.name in PAID:
            self.buckets.judge(actor.name, f"{actor.name}'s {course.operation} answered {outcome}", outcome.value)
        else:
            self.judge.judge(actor, outcome, course)
        operation = course.operation
        self.counts[f"{operation.name} {outcome.status}"] += 1
        if operation.name == "round" and outcome.status == "Stale":
            self._kill(actor)  # who is superseded leaves
        if outcome.status != "ok":
            return
        if operation.name in CONTROLS:
            self._govern(actor, outcome.value, course)
        elif operation.name == "claim":
            actor.row = outcome.value
        elif operation.name == "release":
            actor.row = NO_ROW
        elif operation.name == "post":
            actor.tickets = [*actor.tickets[-2:], outcome.value]
        elif operation.name == "withdraw":
            actor.tickets.remove(operation.arguments[0])
        elif operation.name == "take":
            self.counts["refused tokens"] += outcome.value < 0
            if outcome.value >= 0:
                actor.paid = [*actor.paid[-4:], operation.arguments[1:]]
        elif operation.name == "give_back":
            actor.paid.remove(operation.arguments)
        elif operation.name in ("admit", "batch"):
            decisions = [outcome.value] if operation.name == "admit" else outcome.value[0]
            self.counts["repeated"] += sum(decision.repeated for decision in decisions)

    def _govern(self, actor: Actor, value: Any, course: Course) -> None:
        """Settle what a controller answered that has to do with emergencies."""
        what = f"{actor.name}'s {course.operation}"
        if course.operation.name == "take_over":
            self.alarm.inherit(actor, course, value[0])
        elif course.operation.name == "apply":
            self.alarm.hear(actor, what, course, value[1])
        else:
            self.alarm.judge(actor, course, value, contended=course.contended)
            self.counts["emergencies begin"] += sum(said.startswith("emergency: ") for said in value.said)
            self.counts["emergencies end"] += sum(said.startswith("emergency over") for said in value.said)

    def _harm(self) -> bool:
        """Let something befall block or machine; False when it is not the moment for it."""
        harm, untouched = self.harm, self.harm.lost or self._holder() == 0
        mend = bool(harm.causes) and self.random.random() < 0.8
        what = self.random.choices(("memory", "block", "mutex"), (12, 8, 1))[0]
        if what == "memory" and mend == (harm.memory_percent >= FULL):
            self._tell(harm.fill())
        elif what == "block" and mend == harm.corrupt and untouched:
            self._tell(harm.flip_back() if mend else harm.flip(self.chronicle.newest))
        elif what == "mutex" and mend == harm.lost and untouched:
            for actor in [*self.actors] if mend else []:
                self._kill(actor)
            self._tell(harm.renew() if mend else harm.lose())
        else:
            return False
        self.counts[f"{what} {'mended' if mend else 'harmed'}"] += 1
        return True

    def _kill(self, actor: Actor) -> None:
        held = self._holder() == actor.pid
        self._tell(f"{actor.name} {actor.operation or ''} dies{' with the lock' * held}")
        actor.kill()
        self.counts["died with the lock" if held else "died in an operation" if actor.operation else "died idle"] += 1
        course = self.courses.pop(actor.name, None)
        self.buckets.end(actor.name)
        self.alarm.end(actor.name)
        self.actors.remove(actor)
        if course:
            self.inspection.look(actor, course.made)

    def _bear(self) -> None:
        workers = sum(actor.name.startswith("worker") for actor in self.actors)
        kind: Literal["worker", "controller"] = "worker" if workers < WORKERS else "controller"
        self._born += 1
        self.actors.append(Actor(f"{kind}-{self._born}", self.formed))

    def _picked(self) -> Actor:
        """Return who moves: rather often the one who holds the lock, as nobody else gets far meanwhile."""
        if not self.actors:
            self._bear()
        holders = [actor for actor in self.actors if actor.pid == self._holder()]
        return self.random.choice(holders if holders and self.random.random() < 0.4 else self.actors)

    def _holder(self) -> int:
        return self.formed.block.mutex_owner()

    def _tell(self, sentence: str) -> None:
        self._told.append(f"{self.steps}: {shorten(sentence)}")
        self._digest.update(sentence.encode())

    def _pay(self, actor: Actor) -> None:
        operation = actor.operation
        assert operation is not None
        if operation.name == "take":
            now_ns, account, count = operation.arguments
            self.buckets.begin(actor.name, account, count, now_ns)
        elif operation.name == "give_back":
            account, count = operation.arguments
            self.buckets.begin(actor.name, account, count, None)
