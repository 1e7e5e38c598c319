"""The judge: whether the answer of an operation can be true.

An operation spans an interval of positions and takes effect at one instant (Herlihy and Wing 1990,
doi:10.1145/78969.78972), so its answer must have been true at one position of the interval. A state that was read is
that of such a position; a recall equals brute force at its own `as_of`; a memory that is reported gone was gone.
Entries that it reports are in the log, and none is when it reports that it did nothing. Busy is true only when another
actor had the lock.
"""

import itertools
from collections.abc import Callable
from typing import Any

from shm.errors import ERRORS, OK
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY
from shm.store import ANY_TICKET, Decision
from tests.simulation.actor import Actor
from tests.simulation.chronicle import Chronicle, Moment, holds, items_of, same
from tests.simulation.course import Course
from tests.simulation.player import KeyOf, Outcome


class Judge:
    """Judges answers by the chronicle."""

    def __init__(self, chronicle: Chronicle) -> None:
        self.chronicle = chronicle

    def judge(self, actor: Actor, outcome: Outcome, course: Course) -> None:
        """Judge one outcome. Raises WrongError."""
        operation = course.operation
        moments = [self.chronicle.moments[p] for p in range(course.began, self.chronicle.newest + 1)]
        what = f"{actor.name}'s {operation} answered {outcome.status}"
        if outcome.status != "ok":
            if operation.name != "round":  # in which a controller may have done something before it was superseded
                same(f"{what}, having entered", [], course.made)
            self._refused(what, actor, outcome.status, course, moments)
            return
        judge: Callable[..., None] = getattr(self, "_" + operation.name)
        judge(what, outcome.value, course, moments, *operation.arguments)

    def _refused(self, what: str, actor: Actor, status: str, course: Course, moments: list[Moment]) -> None:
        operation = course.operation
        if status == "Busy":
            holds(f"{what}: somebody else stood with the lock", course.contended)
        elif status in ("Corrupt", "Lost", "Exhausted"):
            self._troubled(what, status, course, moments, 0)
        elif status == "Stale":
            troubled = any(causes & ~EMERGENCY_MEMORY for causes in course.causes)  # then they know each other by pid
            signers = {words.signer for words in course.words} - {actor.pid, *actor.predecessors}
            superseded = actor.epoch < moments[-1].seen.epoch or (troubled and signers)
            holds(f"{what}: a newer controller had taken over", superseded)
        elif status in ("Stopped", "Reused"):
            self._not_decided(what, status, items_of(operation.arguments)[0][2], moments)
        elif status in ("Gone", "Unknown") and operation.name in ("forget", "read"):
            self._not_there(what, status, operation.arguments[-1], moments)
        elif status == "Gone" and operation.name == "page":
            oldest = moments[-1].seen.position + 2 - self.chronicle.layout.log_capacity
            holds(f"{what}: overwritten, the oldest is {oldest}", operation.arguments[0] < oldest)
        elif status == "Unknown" and operation.name == "page":
            holds(f"{what}: not yet there", operation.arguments[0] > moments[0].seen.position + 1)
        elif status == "Taken" and operation.name == "post":
            after = operation.arguments[3]
            late = after not in (ANY_TICKET, course.commands) or course.commands != self.chronicle.commands
            holds(f"{what}: another was pending, or had been carried out since", any(course.pendings) or late)
        elif status == "Taken" and operation.name == "claim":
            holds(f"{what}: others moved meanwhile", len(course.steps) > 1)
        else:
            holds(f"{what}: which is no answer to that", False)

    def _troubled(self, what: str, status: str, course: Course, moments: list[Moment], item: int) -> None:
        """It is corrupt or lost, or, to an event, the controller says so; not to one that was answered before."""
        bit = {"Corrupt": EMERGENCY_CORRUPT, "Lost": EMERGENCY_LOST, "Exhausted": EMERGENCY_MEMORY}[status]
        worse = bit - 1  # that is answered before it
        said = any(word & bit and not word & worse for word in course.in_force)
        event = course.operation.name in ("admit", "batch")
        key = items_of(course.operation.arguments)[item][2] if event else None
        event = event and not (key and all(self.chronicle.receipt_for(key, moment) for moment in moments))
        so = bit != EMERGENCY_MEMORY and any(causes & bit for causes in course.causes)
        holds(f"{what} in emergencies {course.in_force} and troubles {course.causes}", so or (event and said))

    def _not_decided(self, what: str, status: str, key: KeyOf | None, moments: list[Moment]) -> None:
        receipts = [key and self.chronicle.receipt_for(key, moment) for moment in moments]
        if status == "Stopped":
            fact = any(moment.stopped and not receipt for moment, receipt in zip(moments, receipts, strict=True))
        else:
            fact = any(receipt and key and receipt.key[2] != key[2] for receipt in receipts)
        holds(f"{what}: and it was so", fact)

    def _not_there(self, what: str, status: str, memory_id: int, moments: list[Moment]) -> None:
        def true(moment: Moment) -> bool:
            given = 1 <= memory_id <= moment.seen.scalars.accepted
            return given and memory_id not in moment.live if status == "Gone" else not given

        holds(f"{what}: and it was so", any(true(moment) for moment in moments))

    # -- what a worker is answered -------------------------------------------------------------------------------------

    def _claim(self, what: str, row: int, course: Course, _moments: list[Moment]) -> None:
        holds(f"{what} {row}: there is such a row", 0 <= row < self.chronicle.layout.rows)
        same(f"{what}, having entered", [], course.made)

    def _release(self, what: str, _value: None, course: Course, _moments: list[Moment]) -> None:
        same(f"{what}, having entered", [], course.made)

    def _admit(self, what: str, decision: Decision, course: Course, moments: list[Moment], *arguments: Any) -> None:
        made = iter(course.made)
        self._decision(what, decision, items_of(arguments)[0][2], made, moments)
        same(f"{what}, having entered besides", [], list(made))

    def _batch(
        self, what: str, value: tuple[list[Decision], int], course: Course, moments: list[Moment], *arguments: Any
    ) -> None:
        (decisions, status), made = value, iter(course.made)
        items = items_of(arguments)
        for decision, item in zip(decisions, items, strict=False):
            self._decision(what, decision, item[2], made, moments)
        same(f"{what}, having entered besides", [], list(made))
        same(f"{what}: whether all are decided", status == 0, len(decisions) == len(items))
        if status == OK:
            return
        error = ERRORS[status]
        if error.__name__ == "Busy":
            holds(f"{what}: somebody else stood with the lock", course.contended)
        elif error.__name__ in ("Corrupt", "Lost", "Exhausted"):
            self._troubled(what, error.__name__, course, moments, len(decisions))
        else:
            self._not_decided(what, error.__name__, items[len(decisions)][2], moments)

    def _decision(self, what: str, decision: Decision, key: KeyOf | None, made: Any, moments: list[Moment]) -> None:
        """A decision is the one that the log holds; a repeated one is that of a receipt which was promised."""
        if decision.repeated:
            receipts = [key and self.chronicle.receipt_for(key, moment) for moment in moments]
            firsts = [r.decision._replace(repeated=1) for r in receipts if r and key and r.key[2] == key[2]]
            holds(f"{what} {decision}: which is a first answer of that key, {firsts}", decision in firsts)
        else:
            position = next(made, 0)
            holds(f"{what} {decision}: which is in the log", position)
            same(what, self.chronicle.moments[position].decision, decision)

    def _forget(self, what: str, image: bytes, course: Course, _moments: list[Moment], *_arguments: Any) -> None:
        self._entered(what, image, course)

    def _entered(self, what: str, image: bytes, course: Course) -> None:
        same(f"{what}: entries", 1, len(course.made))
        same(what, self.chronicle.moments[course.made[0]].image.hex(), image.hex())

    def _recall(self, what: str, value: Any, course: Course, _moments: list[Moment], *arguments: Any) -> None:
        (matches, as_of, corrupt_id), (number, k, window) = value, arguments
        holds(f"{what} as of {as_of}: no earlier than {course.began}", course.began <= as_of <= self.chronicle.newest)
        same(f"{what}: corrupt memory", 0, corrupt_id)
        query = self.chronicle.formed.pool.event(number)[1]
        expected = []
        for match in self.chronicle.nearest(self.chronicle.moments[as_of], query, k, window):
            memory = self.chronicle.memories[match.id]
            rest = (memory.moral, memory.time_ns, memory.phase, memory.payload, memory.vector)
            expected.append((match.id, match.score, *rest))
        same(f"{what} as of {as_of}", expected, matches)

    def _look(self, what: str, seen: Any, course: Course, _moments: list[Moment]) -> None:
        holds(f"{what} of {seen.position}: no earlier than {course.began}", seen.position >= course.began)
        same(what, self.chronicle.moments[seen.position].seen, seen)

    def _add_up(self, what: str, value: tuple[int, int, int], _course: Course, moments: list[Moment]) -> None:
        counted = [(m.seen.scalars.accepted, m.seen.scalars.rejected, m.seen.position) for m in moments]
        holds(f"{what} {value}: which are those of {counted}", value in counted)

    def _read(self, what: str, memory: Any, _course: Course, moments: list[Moment], memory_id: int) -> None:
        same(what, self.chronicle.memories[memory_id], memory)
        holds(f"{what}: it lived", any(memory_id in moment.live for moment in moments))

    def _page(self, what: str, value: Any, course: Course, _moments: list[Moment], first: int, count: int) -> None:
        images, _ = value
        known = self.chronicle.moments
        same(what, [known[first + i].image.hex() for i in range(len(images))], [image.hex() for image in images])
        holds(f"{what}: and is complete", len(images) == count or first + len(images) > course.began)

    def _post(self, what: str, ticket: int, course: Course, _moments: list[Moment], *arguments: Any) -> None:
        posted = [pending for pending in course.pendings if pending and pending[1:] == arguments[:3]]
        holds(f"{what} {ticket}: which was pending", any(pending.ticket == ticket for pending in posted))

    def _withdraw(self, what: str, done: bool, course: Course, _moments: list[Moment], ticket: int) -> None:
        seen = [pending is not None and pending.ticket == ticket for pending in course.pendings]
        gone = any(before and not after for before, after in itertools.pairwise(seen))
        holds(f"{what} {done}: and it was so, of {course.pendings}", gone if done else not all(seen))

    # -- what a controller is answered ---------------------------------------------------------------------------------

    def _take_over(self, what: str, value: Any, course: Course, _moments: list[Moment], *_arguments: Any) -> None:
        _, image = value
        if image:
            self._entered(what, image, course)
            return
        same(f"{what}, having entered", [], course.made)
        troubled = any(causes & ~EMERGENCY_MEMORY for causes in course.causes)
        holds(f"{what}: it could not take its epoch", troubled or course.contended)

    def _tick(self, what: str, image: bytes, course: Course, _moments: list[Moment], *_arguments: Any) -> None:
        self._entered(what, image, course)

    def _apply(self, what: str, value: Any, course: Course, _moments: list[Moment], *_arguments: Any) -> None:
        image, _ = value
        if image:
            self._entered(what, image, course)
        else:
            same(f"{what}, having entered", [], course.made)
            holds(f"{what}: nothing was pending", not all(course.pendings))

    def _round(self, *_: Any) -> None:
        """What it entered was followed, and what it felt is for the alarm to judge."""

    def _scrub(self, what: str, found: Any, _course: Course, _moments: list[Moment]) -> None:
        same(what, [(True, 0)] * (self.chronicle.layout.capacity + 1), found)
