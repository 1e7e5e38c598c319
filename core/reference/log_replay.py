"""Replay of the log: applies a block's entries to the reference model and compares every number.

`Model` is one committed state: reference governors, rhythm and cascade. `Model.after` applies an entry and raises
`DivergenceError` when the state before or after in the entry differs in one bit. A replay may start at any entry,
because each carries the scalar state before it. The levels can be followed only from the first entry, because they
depend on every vector. The own governor of a namespace is judged again from the entry on that says its terms; before
that, its entries must follow from each other.

So the log proves the state instead of only describing it: tests replay whole concurrent histories, and an operator can
replay what a server recorded.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Self

from core.namespaces import NamespaceId, Policy, Terms
from core.reference.governor import Governor
from core.reference.rhythm import Rhythm
from core.reference.synapse import Synapse
from core.reference.vector import Vector
from core.regime import Regime
from shm import records
from shm.layout import (
    DECIDED_JUDGED,
    DECIDED_OWN,
    DECIDED_SKIP,
    DECIDED_STORED,
    DECIDED_VERDICT,
    FLAG_STOPPED,
    KINDS,
    NAMESPACE_OWN,
    STEPS,
)
from shm.records import (
    DecidedPointer,
    Entry,
    changed_of,
    decided_of,
    initial_settings_of,
    replaced_settings_of,
)  # fmt: skip

Vectors = Callable[[int], Vector]  # memory id → float32[D]


class DivergenceError(Exception):
    """The log and the reference model disagree; the message names the position, the field and both values."""


class Scalars(NamedTuple):
    """The scalar state, which each log entry has twice. Names and order of the fields are those of the layout."""

    theta: float
    ema: float
    phase: int
    flags: int
    counter: int
    accepted: int
    rejected: int
    step: int
    newest_id: int
    live: int

    @classmethod
    def of(cls, record: records.Scalars) -> Self:
        """Copy the scalars from the record of that name."""
        return cls(*(getattr(record, name) for name in cls._fields))


class Own(NamedTuple):
    """The own governor of a namespace. `policy` is None while no entry has said its terms."""

    governor: Governor
    policy: Policy | None = None


class Model(NamedTuple):
    """One committed state of the reference model. `levels` is None when they are not followed.

    `own` has the own governors of the namespaces that have one, as far as the entries have named them.
    """

    position: int
    governor: Governor
    rhythm: Rhythm
    levels: Synapse | None
    flags: int
    accepted: int
    rejected: int
    newest_id: int
    live: int
    settings: Regime
    own: Mapping[NamespaceId, Own] = {}

    @classmethod
    def before(cls, entry: Entry, settings: Regime, levels: Synapse | None) -> Self:
        """Return the state before an entry, as the entry records it; a replay can start there."""
        found = Scalars.of(entry.before)
        return cls(
            entry.position - 1,
            Governor(found.theta, found.ema),
            Rhythm(found.phase, found.counter, found.step),
            levels,
            found.flags,
            found.accepted,
            found.rejected,
            found.newest_id,
            found.live,
            settings,
        )

    @property
    def scalars(self) -> Scalars:
        """The scalar state, as an entry records it."""
        return Scalars(
            self.governor.theta,
            self.governor.ema,
            self.rhythm.phase,
            self.flags,
            self.rhythm.counter,
            self.accepted,
            self.rejected,
            self.rhythm.step,
            self.newest_id,
            self.live,
        )

    def after(self, entry: Entry, replaced_by: Regime, vectors: Vectors) -> Self:
        """Return the state after one entry. `replaced_by` are the settings in force after a configure entry.

        Raises DivergenceError when the entry does not follow from this state.
        """
        position = self.position + 1
        _check_equal(position, "position", entry.position, position)
        _check_equal(position, "before", Scalars.of(entry.before), self.scalars)
        follow: Callable[[Entry, Regime, Vectors], Self] = getattr(self, "_" + KINDS[entry.kind])
        model = follow(entry, replaced_by, vectors)._replace(position=position)
        model = model._replace(live=self._live(entry))
        _check_equal(position, "after", Scalars.of(entry.after), model.scalars)
        return model

    def _live(self, entry: Entry) -> int:
        """Return the number of live memories after an entry, which names the slots that it wrote and freed."""
        if KINDS[entry.kind] not in ("decision", "delete", "lost", "update"):
            return self.live
        decided = decided_of(entry)
        return self.live + (decided.slot != 0) - (decided.victim_slot != 0)

    def _decision(self, entry: Entry, _replaced_by: Regime, vectors: Vectors) -> Self:
        decided = decided_of(entry)
        settings = self.settings
        verdict, model = self._judge(entry.position, decided)
        flags = DECIDED_JUDGED * (verdict is not None) | DECIDED_VERDICT * (verdict is True)
        _check_equal(entry.position, "verdict", decided.flags & (DECIDED_JUDGED | DECIDED_VERDICT), flags)
        accepted = entry.after.accepted > entry.before.accepted
        stored = accepted and not decided.flags & DECIDED_SKIP
        _check_equal(entry.position, "stored", bool(decided.flags & DECIDED_STORED), stored)
        _check_equal(entry.position, "memory_id", decided.memory_id, self.newest_id + 1 if stored else 0)
        levels, rhythm = self.levels, self.rhythm
        if stored and levels is not None:
            levels = levels.after_run(vectors(decided.memory_id), settings.synapse)
        if settings.rhythm.by_events:
            levels, rhythm = self._step(levels)
        return model._replace(
            rhythm=rhythm,
            levels=levels,
            accepted=self.accepted + accepted,
            rejected=self.rejected + (not accepted),
            newest_id=self.newest_id + stored,
        )

    def _judge(self, position: int, decided: DecidedPointer) -> tuple[bool | None, Self]:
        """Return the verdict on an event, None if it is not judged, and the state with the governor that judged."""
        own, server = self._own(position, decided), Policy(self.settings.governor, self.settings.mode)
        policy = server if own is None else own.policy
        if policy is None:  # the terms are older than the first entry
            judged = decided.flags & DECIDED_JUDGED
            return bool(decided.flags & DECIDED_VERDICT) if judged else None, self._moved(decided, own)
        governor = self.governor if own is None else own.governor
        verdict, adapted = (None, governor) if policy.mode == "off" else governor.decide(decided.moral, policy.settings)
        let_through = verdict is not False or policy.mode == "shadow"
        skipped = bool(decided.flags & DECIDED_SKIP)
        _check_equal(position, "stored", bool(decided.flags & DECIDED_STORED), let_through and not skipped)
        if own is None:
            return verdict, self._replace(governor=adapted)
        after = Governor(decided.own_theta[1], decided.own_ema[1])
        _check_equal(position, "own governor after", after, adapted)
        return verdict, self._moved(decided, own)

    def _own(self, position: int, decided: DecidedPointer) -> Own | None:
        """Return the own governor of the namespace that an entry names, None if it shares the server's."""
        namespace = NamespaceId(decided.namespace, decided.generation)
        known = self.own.get(namespace)
        if not decided.flags & DECIDED_OWN:
            _check_equal(position, "own governor", None, known)
            return None
        before = Governor(decided.own_theta[0], decided.own_ema[0])
        if known is None:
            return Own(before)
        _check_equal(position, "own governor before", before, known.governor)
        return known

    def _moved(self, decided: DecidedPointer, own: Own | None) -> Self:
        """Return the state with the own governor that an entry says for afterwards."""
        if own is None:
            return self
        after = own._replace(governor=Governor(decided.own_theta[1], decided.own_ema[1]))
        return self._replace(own={**self.own, NamespaceId(decided.namespace, decided.generation): after})

    def _tick(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        levels, rhythm = self._step(self.levels)
        return self._replace(rhythm=rhythm, levels=levels)

    def _step(self, levels: Synapse | None) -> tuple[Synapse | None, Rhythm]:
        if levels is not None and self.rhythm.runs_cascade(self.settings.rhythm):
            levels = levels.after_run(None, self.settings.synapse)
        return levels, self.rhythm.after_step(self.settings.rhythm)

    def _configure(self, entry: Entry, replaced_by: Regime, _vectors: Vectors) -> Self:
        replaced = Regime.of_record(replaced_settings_of(entry))
        _check_equal(entry.position, "settings replaced", replaced, self.settings)
        return self._replace(
            settings=replaced_by,
            governor=self.governor.with_settings(replaced_by.governor),
            rhythm=self.rhythm.with_settings(replaced_by.rhythm),
        )

    def _reset(self, entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        decided = decided_of(entry)
        if decided.generation:
            own = self._own(entry.position, decided)
            if own and own.policy:
                initial = Governor.initial(own.policy.settings)
                _check_equal(
                    entry.position, "own governor", Governor(decided.own_theta[1], decided.own_ema[1]), initial
                )
            return self._moved(decided, own)
        levels = None if self.levels is None else Synapse.initial(len(self.levels.l1))
        return self._replace(
            governor=Governor.initial(self.settings.governor),
            rhythm=self.rhythm.reset(self.settings.rhythm),
            levels=levels,
        )

    def _delete(self, entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        removed = decided_of(entry).memory_id
        _check_equal(entry.position, "removed id was given", True, 1 <= removed <= self.newest_id)
        return self

    def _lost(self, entry: Entry, replaced_by: Regime, vectors: Vectors) -> Self:
        return self._delete(entry, replaced_by, vectors)

    def _update(self, entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        updated = decided_of(entry).memory_id
        _check_equal(entry.position, "updated id was given", True, 1 <= updated <= self.newest_id)
        return self

    def _namespace(self, entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        changed = changed_of(entry)
        namespace = NamespaceId(changed.namespace, changed.terms.generation)
        own = {key: value for key, value in self.own.items() if key != namespace}
        known, step = self.own.get(namespace), STEPS[changed.step]
        before, after = (Governor(changed.own_theta[i], changed.own_ema[i]) for i in range(2))
        if known:
            _check_equal(entry.position, "own governor before", before, known.governor)
        if step != "free" and changed.terms.flags & NAMESPACE_OWN:
            policy = Terms.of_record(changed.terms).policy
            assert policy is not None
            if step == "create":
                expected = Governor.initial(policy.settings)
            elif known is None:
                expected = after  # it begins here, or its terms are older than the first entry
            else:
                expected = known.governor.with_settings(policy.settings)
            _check_equal(entry.position, "own governor after", after, expected)
            own[namespace] = Own(after, policy)
        return self._replace(own=own)

    def _stop(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        return self._replace(flags=self.flags | FLAG_STOPPED)

    def _resume(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        return self._replace(flags=self.flags & ~FLAG_STOPPED)

    def _start(self, entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        _check_equal(entry.position, "position of the start", entry.position, 1)
        initial = Regime.of_record(initial_settings_of(entry))
        _check_equal(entry.position, "initial settings", initial, self.settings)
        return self


def _check_equal(position: int, field: str, logged: object, expected: object) -> None:
    if logged != expected:
        raise DivergenceError(f"position {position}: {field} is {logged}, the reference model has {expected}")


def _no_vectors(memory_id: int) -> Vector:
    raise AssertionError(f"levels are not followed, but the vector of memory {memory_id} was requested")


def replay(
    entries: Iterable[Entry], live: Regime, levels: Synapse | None = None, vectors: Vectors = _no_vectors
) -> Model:
    """Apply consecutive log entries, oldest first, and return the resulting state.

    `live` are the settings in force after the last entry. A configure entry has the settings that it replaced, so the
    settings at each position are known from later entries. With `levels` (before the first entry) and `vectors`
    (float32[D] of each accepted memory) the cascade is followed too. Raises DivergenceError.
    """
    log = list(entries)
    in_force, current = [live], live
    for entry in reversed(log):
        if entry.kind == KINDS.index("configure"):
            current = Regime.of_record(replaced_settings_of(entry))
        in_force.append(current)
    in_force.reverse()  # in_force[i] holds before log[i], in_force[i + 1] after it
    model = Model.before(log[0], in_force[0], levels)
    for entry, after in zip(log, in_force[1:], strict=True):
        model = model.after(entry, after, vectors)
    return model
