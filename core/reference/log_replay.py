"""Replay of the log: follows a live block entry by entry with the reference model, and compares every number.

`Model` is the reference governor, rhythm and cascade together: one committed state. `Model.after` applies one log entry
and raises `Divergence` when the entry's own account of the state before or after differs in a single bit. A replay may
start at any entry, because each carries the scalar state it found; the levels can be followed only from the beginning,
because they depend on every vector.

This is what makes the log a proof and not a diary: the tests replay whole concurrent histories through it, and an
operator can replay what a server says of itself.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from core.reference.governor import Governor
from core.reference.rhythm import Rhythm
from core.reference.synapse import Synapse
from core.reference.vector import Vector
from core.regime import Regime
from shm import records
from shm.layout import FLAG_STOPPED, KINDS
from shm.records import Entry, decided_of, replaced_settings_of

Vectors = Callable[[int], Vector]  # memory id → float32[D]


class DivergenceError(Exception):
    """The log and the reference model disagree; the message names the position, the field and both values."""


class Scalars(NamedTuple):
    """The scalar state that each log entry carries twice. Field names and order are those of the layout."""

    theta: float
    ema: float
    phase: int
    flags: int
    counter: int
    accepted: int
    rejected: int
    step: int
    live: int

    @classmethod
    def of(cls, record: records.Scalars) -> Self:
        """Copy them out of the record of that name."""
        return cls(*(getattr(record, name) for name in cls._fields))


class Model(NamedTuple):
    """One committed state, by the reference. `levels` is None when they are not followed."""

    position: int
    governor: Governor
    rhythm: Rhythm
    levels: Synapse | None
    flags: int
    accepted: int
    rejected: int
    live: int
    settings: Regime

    @classmethod
    def before(cls, entry: Entry, settings: Regime, levels: Synapse | None) -> Self:
        """Return the state that an entry says it found, to start a replay there."""
        found = Scalars.of(entry.before)
        return cls(
            entry.position - 1,
            Governor(found.theta, found.ema),
            Rhythm(found.phase, found.counter, found.step),
            levels,
            found.flags,
            found.accepted,
            found.rejected,
            found.live,
            settings,
        )

    @property
    def scalars(self) -> Scalars:
        """The scalar state, as an entry would carry it."""
        return Scalars(
            self.governor.theta,
            self.governor.ema,
            self.rhythm.phase,
            self.flags,
            self.rhythm.counter,
            self.accepted,
            self.rejected,
            self.rhythm.step,
            self.live,
        )

    def after(self, entry: Entry, replaced_by: Regime, vectors: Vectors) -> Self:
        """Return the state after one entry. `replaced_by` are the settings that hold after a configure entry.

        Raises DivergenceError when the entry does not follow from this state.
        """
        position = self.position + 1
        _same(position, "position", entry.position, position)
        _same(position, "before", Scalars.of(entry.before), self.scalars)
        follow: Callable[[Entry, Regime, Vectors], Self] = getattr(self, "_" + KINDS[entry.kind])
        model = follow(entry, replaced_by, vectors)._replace(position=position)
        model = model._replace(live=self._live(entry, model.accepted - self.accepted))
        _same(position, "after", Scalars.of(entry.after), model.scalars)
        return model

    def _live(self, entry: Entry, accepted: int) -> int:
        """Return how many memories live after an entry.

        Whether an accepted one evicted a live one, only the slots know.
        """
        if entry.kind == KINDS.index("delete"):
            return self.live - 1
        return entry.after.live if accepted and entry.after.live == self.live else self.live + accepted

    def _decision(self, entry: Entry, _replaced_by: Regime, vectors: Vectors) -> Self:
        decided = decided_of(entry)
        settings = self.settings
        accepted, governor = self.governor.decide(decided.moral, settings.governor)
        _same(entry.position, "memory_id", decided.memory_id, self.accepted + 1 if accepted else 0)
        levels, rhythm = self.levels, self.rhythm
        if accepted and levels is not None:
            levels = levels.cascaded(vectors(decided.memory_id), settings.synapse)
        if settings.rhythm.by_events:
            levels, rhythm = self._stepped(levels)
        return self._replace(
            governor=governor,
            rhythm=rhythm,
            levels=levels,
            accepted=self.accepted + accepted,
            rejected=self.rejected + (not accepted),
        )

    def _tick(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        levels, rhythm = self._stepped(self.levels)
        return self._replace(rhythm=rhythm, levels=levels)

    def _stepped(self, levels: Synapse | None) -> tuple[Synapse | None, Rhythm]:
        if levels is not None and self.rhythm.consolidates(self.settings.rhythm):
            levels = levels.cascaded(None, self.settings.synapse)
        return levels, self.rhythm.stepped(self.settings.rhythm)

    def _configure(self, entry: Entry, replaced_by: Regime, _vectors: Vectors) -> Self:
        replaced = Regime.of_record(replaced_settings_of(entry))
        _same(entry.position, "settings replaced", replaced, self.settings)
        return self._replace(
            settings=replaced_by,
            governor=self.governor.reconfigured(replaced_by.governor),
            rhythm=self.rhythm.reconfigured(replaced_by.rhythm),
        )

    def _reset(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        levels = None if self.levels is None else Synapse.initial(len(self.levels.l1))
        return self._replace(
            governor=Governor.initial(self.settings.governor),
            rhythm=self.rhythm.reset(self.settings.rhythm),
            levels=levels,
        )

    def _delete(self, entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        deleted = decided_of(entry).memory_id
        _same(entry.position, "deleted id was given", True, 1 <= deleted <= self.accepted)
        return self

    def _stop(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        return self._replace(flags=self.flags | FLAG_STOPPED)

    def _resume(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        return self._replace(flags=self.flags & ~FLAG_STOPPED)

    def _epoch(self, _entry: Entry, _replaced_by: Regime, _vectors: Vectors) -> Self:
        return self


def _same(position: int, field: str, logged: object, expected: object) -> None:
    if logged != expected:
        raise DivergenceError(f"position {position}: {field} is {logged}, the reference model says {expected}")


def _no_vectors(memory_id: int) -> Vector:
    raise AssertionError(f"levels are not followed, yet the vector of memory {memory_id} was asked for")


def replay(
    entries: Iterable[Entry], live: Regime, levels: Synapse | None = None, vectors: Vectors = _no_vectors
) -> Model:
    """Follow consecutive log entries, oldest first, and return the state they lead to.

    `live` are the settings in force after the last one. A configure entry tells which settings it replaced, so those in
    force at each position are known from what comes later. `levels` and `vectors` follow the cascade too: the levels
    before the first entry, and float32[D] of each accepted memory.
    """
    log = list(entries)
    in_force, held = [live], live
    for entry in reversed(log):
        if entry.kind == KINDS.index("configure"):
            held = Regime.of_record(replaced_settings_of(entry))
        in_force.append(held)
    in_force.reverse()  # in_force[i] holds before log[i], in_force[i + 1] after it
    model = Model.before(log[0], in_force[0], levels)
    for entry, after in zip(log, in_force[1:], strict=True):
        model = model.after(entry, after, vectors)
    return model
