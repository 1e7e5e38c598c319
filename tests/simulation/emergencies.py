"""Checks that emergencies are declared, last and refuse events exactly as they should.

What a controller must declare follows from what it observed and was told (`Observation`, recorded in its process).
Reason by reason this is compared with the definition. A reason is in force from the first sight of its cause until the
cause was absent for a whole cooldown, or until an operator resumed. An order holds no longer than the cause when that
is corruption or a lost lock, and as long as the cause when it is memory. Every observation must be true, and every
lasting cause must be observed.

Only the newest controller may change the word; without lock or sound state, the last one that claimed the vitals or its
successor; and the one that carries out a resume. An event may be decided only if the word was zero at some moment while
its process had the lock (`Trace.in_force_under_lock`), and refused for an emergency only if it was not.
"""

from typing import Final

from core.limits import EMERGENCY_COOLDOWN_SECONDS
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY
from testing.block_fixture import Formed
from tests.simulation.actor import Actor
from tests.simulation.faults import FULL, Faults
from tests.simulation.history import History, check, check_equal
from tests.simulation.player import Observation, RoundResult
from tests.simulation.trace import Step, Trace, Words

REASONS: Final = (EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY)
COOLDOWN_NS: Final = EMERGENCY_COOLDOWN_SECONDS.value * 1_000_000_000


class _Reason:
    """One reason, as one controller should see it."""

    def __init__(self, bit: int, inherited: Words) -> None:
        self.bit = bit
        self.in_force = bool(inherited.in_force & bit)
        self.overruled = bool(inherited.overruled & bit)
        # Its cause, at the last look; full memory that was found in force counts as seen until it is looked at.
        self.seen = self.in_force and bit == EMERGENCY_MEMORY
        self._looks: list[tuple[int, bool]] = []  # of this episode: when, and whether the cause was seen

    def look(self, now_ns: int, seen: bool) -> bool:
        """Follow one look at the causes; returns whether an episode begins."""
        self.seen = seen
        self.overruled = self.overruled and seen
        matters = seen and not self.overruled
        if not self.in_force:
            self._looks = [(now_ns, True)]
            self.in_force = matters
            return matters
        self._looks.append((now_ns, matters))
        last = max((i for i, (_, bad) in enumerate(self._looks) if bad), default=-1)
        quiet = self._looks[last + 1 :]
        self.in_force = not quiet or now_ns - quiet[0][0] < COOLDOWN_NS
        return False

    def order(self) -> None:
        """Follow an order to resume."""
        if self.bit == EMERGENCY_MEMORY:
            self.overruled = self.overruled or (self.in_force and self.seen)
            self.in_force = False
        elif not self.seen:
            self.in_force = False


class _Reference:
    """What one controller should declare."""

    def __init__(self, inherited: Words) -> None:
        self.inherited = inherited
        self.reasons = [_Reason(bit, inherited) for bit in REASONS]
        self.since_ns = inherited.since_ns if inherited.in_force else 0
        self.began = 0

    def hear(self, heard: Observation) -> None:
        """Follow one look, or an order."""
        if heard.causes is None:
            for reason in self.reasons:
                reason.order()
        else:
            for reason in self.reasons:
                if reason.look(heard.time_ns, bool(heard.causes & reason.bit)):
                    self.began += 1
                    self.since_ns = self.since_ns or heard.time_ns
        if not self.in_force:
            self.since_ns = 0

    @property
    def in_force(self) -> int:
        """The reasons in force, as bits."""
        return sum(reason.bit for reason in self.reasons if reason.in_force)

    @property
    def overruled(self) -> int:
        """Those overruled, as bits."""
        return sum(reason.bit for reason in self.reasons if reason.overruled)


class Emergencies:
    """The emergencies of one block, as its controllers should declare them."""

    def __init__(self, formed: Formed, history: History, faults: Faults) -> None:
        self._formed = formed
        self._history = history
        self._faults = faults
        self._references: dict[str, _Reference] = {}
        self._causes: dict[str, int] = {}  # that a controller last reported
        self.words = self._read()
        self._heartbeat_ns = self._beat()

    def _beat(self) -> int:
        return int(self._formed.block.region("vitals").heartbeat_ns)

    def _read(self) -> Words:
        vitals = self._formed.block.region("vitals")
        return Words(
            int(vitals.emergency), int(vitals.emergency_overruled), int(vitals.emergency_since_ns),
            int(vitals.controller_pid),
        )  # fmt: skip

    def begin_step(self, trace: Trace, *, held: bool, contended: bool) -> Step:
        """Add a step to a trace. `held`: its process has the lock; `contended`: another process has it."""
        step = Step(contended, held, self.words, self._faults.causes)
        trace.steps.append(step)
        return step

    def look(self, actor: Actor, trace: Trace) -> None:
        """Look at the words after the newest step of a trace. Raises WrongError."""
        step = trace.steps[-1]
        step.causes_after = self._faults.causes  # the step may have ended one of them
        what = f"{actor.name}'s {trace.operation}"
        kinds = {self._history.moments[position].kind for position in step.made}
        if "decision" in kinds:
            in_force = trace.in_force_under_lock
            check(f"{what} was decided in emergencies {in_force}", 0 in in_force)
        before, after, beat = self.words, self._read(), self._beat()
        beats, self.words, self._heartbeat_ns = beat != self._heartbeat_ns, after, beat
        if beats:
            step.beat = beat
            check_equal(f"{what}: its beat", trace.operation.arguments[0], beat)
        if "resume" in kinds and not beats:
            check_equal(f"{what}: emergencies after an order to resume", 0, after.in_force)
        if not beats and before == after:
            return
        resumes = any(pending and pending.kind == "resume" for pending in trace.pendings)
        overruled = before.overruled | (before.in_force & EMERGENCY_MEMORY)
        resumed = before._replace(in_force=0, overruled=overruled)
        if trace.operation.name in ("apply", "round") and resumes and after == resumed:
            return
        check_equal(f"{what}: who writes {after} over {before}", "round", trace.operation.name)
        newest = actor.epoch == self._history.epoch
        heir = any(words.signer in {actor.pid, *actor.predecessors} for words in trace.words)
        troubled = any(causes & ~EMERGENCY_MEMORY for causes in trace.causes)
        without_lock = troubled or not actor.epoch  # one that has no epoch yet signs, too
        check(f"{what}: it may write {after} over {before}", newest or (without_lock and heir))

    def knows(self, name: str) -> bool:
        """Return whether that is a controller that has begun."""
        return name in self._references

    def inherit(self, actor: Actor, trace: Trace, found: tuple[int, int, int]) -> None:
        """A controller has begun, with the words that it found at some moment of its beginning. Raises WrongError."""
        inherited = [left if left.in_force else left._replace(since_ns=0) for left in trace.words]
        as_found = [words for words in inherited if words[:3] == found]
        check(f"{actor.name} began with {found}, one of {inherited}", bool(as_found))
        self._references[actor.name] = _Reference(as_found[0])
        self._causes[actor.name] = 0
        actor.predecessors = {words.signer for words in as_found}

    def hear(self, actor: Actor, what: str, trace: Trace, heard: list[Observation]) -> None:
        """Follow what a controller was told outside a round: an order."""
        self._ordered(what, trace, heard)
        for one in heard:
            check_equal(f"{what}: it looks at causes in rounds only", None, one.causes)
            self._references[actor.name].hear(one)

    def judge(self, actor: Actor, trace: Trace, result: RoundResult, *, contended: bool) -> None:
        """Judge a round that has ended. Raises WrongError."""
        reference, what = self._references[actor.name], f"{actor.name}'s {trace.operation}, which result {result}"
        reference.began = 0
        self._ordered(what, trace, result.heard)
        for heard in result.heard:
            reference.hear(heard)
        looks = [heard for heard in result.heard if heard.causes is not None]
        looked_ns = self._formed.block.log_time(trace.operation.arguments[0])
        check_equal(f"{what}: when it looked", {looked_ns}, {heard.time_ns for heard in looks})
        self._seen(actor, what, trace, looks[-1].causes or 0, contended=contended)
        check_equal(f"{what}: reasons in force", reference.in_force, result.in_force)
        check_equal(f"{what}: reasons overruled", reference.overruled, result.overruled)
        check_equal(f"{what}: since when", reference.since_ns, result.since_ns)
        began = sum(sentence.startswith("emergency: ") for sentence in result.logged)
        check_equal(f"{what}: episodes that it says begin", reference.began, began)
        if trace.beats and len(trace.steps) == 1:
            check_equal(f"{what}: what it wrote", (result.in_force, result.overruled, result.since_ns), self.words[:3])
        elif not contended:
            check(f"{what}: it beats", trace.beats)

    def _ordered(self, what: str, trace: Trace, heard: list[Observation]) -> None:
        """Check that a controller which carries out an order to resume also overrules its emergency."""
        carried_out = sum(self._history.moments[position].kind == "resume" for position in trace.made)
        check_equal(f"{what}: orders to resume", carried_out, sum(one.causes is None for one in heard))

    def _seen(self, actor: Actor, what: str, trace: Trace, causes: int, *, contended: bool) -> None:
        """Check that each cause it reports existed, and that it reports each cause that lasted."""
        earlier = (
            self._causes[actor.name] if contended else 0
        )  # a controller that finds the lock taken observes nothing new
        self._causes[actor.name] = causes
        full = EMERGENCY_MEMORY * (trace.operation.arguments[1] >= FULL)
        check_equal(f"{what}: whether memory is full", full, causes & EMERGENCY_MEMORY)
        sometime = always = trace.causes[0]
        for at in trace.causes:
            sometime, always = sometime | at, always & at
        check(f"{what}: it saw no more than there was", not causes & ~EMERGENCY_MEMORY & ~sometime & ~earlier)
        if contended:
            return
        unseen = always & ~EMERGENCY_MEMORY & ~causes
        if causes & EMERGENCY_LOST:
            unseen &= ~EMERGENCY_CORRUPT  # without the lock it may not come to look at what the lock protects
        check(f"{what}: it saw what there was", not unseen)

    def end(self, name: str) -> None:
        """A controller has died."""
        self._references.pop(name, None)
        self._causes.pop(name, None)
