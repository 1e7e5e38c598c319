"""The judge: checks that the answer of an operation can be true.

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
from tests.simulation.history import History, Moment, check, check_equal, items_of
from tests.simulation.player import KeyOf, Outcome
from tests.simulation.trace import Trace


class Judge:
    """Judges answers by the history."""

    def __init__(self, history: History) -> None:
        self.history = history

    def judge(self, actor: Actor, outcome: Outcome, trace: Trace) -> None:
        """Judge one outcome. Raises WrongError."""
        operation = trace.operation
        moments = [self.history.moments[p] for p in range(trace.began, self.history.newest + 1)]
        what = f"{actor.name}'s {operation} answered {outcome.status}"
        if outcome.status != "ok":
            if operation.name != "round":  # a round may enter something before the controller is superseded
                check_equal(f"{what}, having entered", [], trace.made)
            self._refused(what, actor, outcome.status, trace, moments)
            return
        judge: Callable[..., None] = getattr(self, "_" + operation.name)
        judge(what, outcome.value, trace, moments, *operation.arguments)

    def _refused(self, what: str, actor: Actor, status: str, trace: Trace, moments: list[Moment]) -> None:
        operation = trace.operation
        if status == "Busy":
            check(f"{what}: somebody else stood with the lock", trace.contended)
        elif status in ("Corrupt", "Lost", "Exhausted"):
            self._troubled(what, status, trace, moments, 0)
        elif status == "Stale":
            troubled = any(causes & ~EMERGENCY_MEMORY for causes in trace.causes)  # then they know each other by pid
            signers = {words.signer for words in trace.words} - {actor.pid, *actor.predecessors}
            superseded = actor.epoch < self.history.epoch or (troubled and signers)
            check(f"{what}: a newer controller had taken over", superseded)
        elif status in ("Stopped", "Reused"):
            self._not_decided(what, status, items_of(operation.arguments)[0][2], moments)
        elif status in ("Gone", "Unknown") and operation.name in ("forget", "lose", "read_memory"):
            self._not_there(what, status, operation.arguments[-1], moments)
        elif status == "Gone" and operation.name == "read_entries":
            oldest = moments[-1].seen.position + 2 - self.history.layout.log_capacity
            check(f"{what}: overwritten, the oldest is {oldest}", operation.arguments[0] < oldest)
        elif status == "Unknown" and operation.name == "read_entries":
            check(f"{what}: not yet there", operation.arguments[0] > moments[0].seen.position + 1)
        elif status == "Taken" and operation.name == "post":
            after = operation.arguments[3]
            late = after not in (ANY_TICKET, trace.commands) or trace.commands != self.history.commands
            check(f"{what}: another was pending, or had been carried out since", any(trace.pendings) or late)
        elif status == "Taken" and operation.name == "claim":
            check(f"{what}: others moved meanwhile", len(trace.steps) > 1)
        else:
            check(f"{what}: which is no answer to that", False)

    def _troubled(self, what: str, status: str, trace: Trace, moments: list[Moment], item: int) -> None:
        """Check a refusal: its cause exists, or (for an event without a receipt) an emergency was declared."""
        bit = {"Corrupt": EMERGENCY_CORRUPT, "Lost": EMERGENCY_LOST, "Exhausted": EMERGENCY_MEMORY}[status]
        worse = bit - 1  # reasons that take precedence
        said = any(word & bit and not word & worse for word in trace.in_force)
        event = trace.operation.name in ("admit", "batch")
        key = items_of(trace.operation.arguments)[item][2] if event else None
        event = event and not (key and all(self.history.receipt_for(key, moment) for moment in moments))
        so = bit != EMERGENCY_MEMORY and any(causes & bit for causes in trace.causes)
        check(f"{what} in emergencies {trace.in_force} and troubles {trace.causes}", so or (event and said))

    def _not_decided(self, what: str, status: str, key: KeyOf | None, moments: list[Moment]) -> None:
        receipts = [key and self.history.receipt_for(key, moment) for moment in moments]
        if status == "Stopped":
            fact = any(moment.stopped and not receipt for moment, receipt in zip(moments, receipts, strict=True))
        else:
            fact = any(receipt and key and receipt.key[2] != key[2] for receipt in receipts)
        check(f"{what}: and it was so", fact)

    def _not_there(self, what: str, status: str, memory_id: int, moments: list[Moment]) -> None:
        def true(moment: Moment) -> bool:
            given = 1 <= memory_id <= moment.seen.scalars.newest_id
            return given and memory_id not in moment.live if status == "Gone" else not given

        check(f"{what}: and it was so", any(true(moment) for moment in moments))

    # -- what a worker is answered -------------------------------------------------------------------------------------

    def _claim(self, what: str, row: int, trace: Trace, _moments: list[Moment]) -> None:
        check(f"{what} {row}: there is such a row", 0 <= row < self.history.layout.rows)
        check_equal(f"{what}, having entered", [], trace.made)

    def _release(self, what: str, _value: None, trace: Trace, _moments: list[Moment]) -> None:
        check_equal(f"{what}, having entered", [], trace.made)

    def _admit(self, what: str, decision: Decision, trace: Trace, moments: list[Moment], *arguments: Any) -> None:
        made = iter(trace.made)
        self._decision(what, decision, items_of(arguments)[0][2], made, moments)
        check_equal(f"{what}, having entered besides", [], list(made))

    def _batch(
        self, what: str, value: tuple[list[Decision], int], trace: Trace, moments: list[Moment], *arguments: Any
    ) -> None:
        (decisions, status), made = value, iter(trace.made)
        items = items_of(arguments)
        for decision, item in zip(decisions, items, strict=False):
            self._decision(what, decision, item[2], made, moments)
        check_equal(f"{what}, having entered besides", [], list(made))
        check_equal(f"{what}: whether all are decided", status == 0, len(decisions) == len(items))
        if status == OK:
            return
        error = ERRORS[status]
        if error.__name__ == "Busy":
            check(f"{what}: somebody else stood with the lock", trace.contended)
        elif error.__name__ in ("Corrupt", "Lost", "Exhausted"):
            self._troubled(what, error.__name__, trace, moments, len(decisions))
        else:
            self._not_decided(what, error.__name__, items[len(decisions)][2], moments)

    def _decision(self, what: str, decision: Decision, key: KeyOf | None, made: Any, moments: list[Moment]) -> None:
        """Check that a decision is the one in the log, or if repeated, the one in a receipt that is kept."""
        if decision.repeated:
            receipts = [key and self.history.receipt_for(key, moment) for moment in moments]
            firsts = [r.decision._replace(repeated=1) for r in receipts if r and key and r.key[2] == key[2]]
            check(f"{what} {decision}: which is a first answer of that key, {firsts}", decision in firsts)
        else:
            position = next(made, 0)
            check(f"{what} {decision}: which is in the log", position)
            check_equal(what, self.history.moments[position].decision, decision)

    def _forget(self, what: str, image: bytes, trace: Trace, _moments: list[Moment], *_arguments: Any) -> None:
        self._entered(what, image, trace)

    def _lose(self, what: str, image: bytes | None, trace: Trace, moments: list[Moment], *arguments: Any) -> None:
        """No memory is corrupt here, so nothing is lost."""
        check_equal(what, None, image)
        check_equal(f"{what}, having entered", [], trace.made)
        check(f"{what}: it lived", any(arguments[-1] in moment.live for moment in moments))

    def _entered(self, what: str, image: bytes, trace: Trace) -> None:
        check_equal(f"{what}: entries", 1, len(trace.made))
        check_equal(what, self.history.moments[trace.made[0]].image.hex(), image.hex())

    def _recall(self, what: str, value: Any, trace: Trace, _moments: list[Moment], *arguments: Any) -> None:
        (matches, as_of, corrupt_id), (number, k, window) = value, arguments
        check(f"{what} as of {as_of}: no earlier than {trace.began}", trace.began <= as_of <= self.history.newest)
        check_equal(f"{what}: corrupt memory", 0, corrupt_id)
        query = self.history.formed.pool.event(number)[1]
        expected = []
        for match in self.history.nearest(self.history.moments[as_of], query, k, window):
            memory = self.history.memories[match.id]
            rest = (memory.moral, memory.time_ns, memory.phase, memory.payload, memory.vector)
            expected.append((match.id, match.score, *rest))
        check_equal(f"{what} as of {as_of}", expected, matches)

    def _read_state(self, what: str, seen: Any, trace: Trace, _moments: list[Moment]) -> None:
        check(f"{what} of {seen.position}: no earlier than {trace.began}", seen.position >= trace.began)
        check_equal(what, self.history.moments[seen.position].seen, seen)

    def _read_tallies(self, what: str, value: tuple[int, int, int], _trace: Trace, moments: list[Moment]) -> None:
        counted = [(m.seen.scalars.accepted, m.seen.scalars.rejected, m.seen.position) for m in moments]
        check(f"{what} {value}: which are those of {counted}", value in counted)

    def _read_memory(self, what: str, memory: Any, _trace: Trace, moments: list[Moment], memory_id: int) -> None:
        check_equal(what, self.history.memories[memory_id], memory)
        check(f"{what}: it lived", any(memory_id in moment.live for moment in moments))

    def _read_entries(
        self, what: str, value: Any, trace: Trace, _moments: list[Moment], first: int, count: int
    ) -> None:
        images, _ = value
        known = self.history.moments
        check_equal(what, [known[first + i].image.hex() for i in range(len(images))], [image.hex() for image in images])
        check(f"{what}: and is complete", len(images) == count or first + len(images) > trace.began)

    def _post(self, what: str, ticket: int, trace: Trace, _moments: list[Moment], *arguments: Any) -> None:
        posted = [pending for pending in trace.pendings if pending and pending[1:] == arguments[:3]]
        check(f"{what} {ticket}: which was pending", any(pending.ticket == ticket for pending in posted))

    def _withdraw(self, what: str, done: bool, trace: Trace, _moments: list[Moment], ticket: int) -> None:
        seen = [pending is not None and pending.ticket == ticket for pending in trace.pendings]
        gone = any(before and not after for before, after in itertools.pairwise(seen))
        check(f"{what} {done}: and it was so, of {trace.pendings}", gone if done else not all(seen))

    # -- what a controller is answered ---------------------------------------------------------------------------------

    def _take_over(self, what: str, value: Any, trace: Trace, _moments: list[Moment], *_arguments: Any) -> None:
        check_equal(f"{what}, having entered", [], trace.made)
        if value[1]:
            return  # the inspection has seen that it took it
        troubled = any(causes & ~EMERGENCY_MEMORY for causes in trace.causes)
        check(f"{what}: it could not take its epoch", troubled or trace.contended)

    def _tick(self, what: str, image: bytes, trace: Trace, _moments: list[Moment], *_arguments: Any) -> None:
        self._entered(what, image, trace)

    def _apply(self, what: str, value: Any, trace: Trace, _moments: list[Moment], *_arguments: Any) -> None:
        image, _ = value
        if image:
            self._entered(what, image, trace)
        else:
            check_equal(f"{what}, having entered", [], trace.made)
            check(f"{what}: nothing was pending", not all(trace.pendings))

    def _round(self, *_: Any) -> None:
        """What it entered was followed, and what it result is for the alarm to judge."""

    def _scrub(self, what: str, found: Any, _trace: Trace, _moments: list[Moment]) -> None:
        check_equal(what, [(True, 0)] * self.history.layout.slots, found)
