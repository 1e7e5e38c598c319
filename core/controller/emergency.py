"""The emergency state: why the server refuses every event although no operator stopped it, and when that ends.

There are three causes: a checksum of the committed state or of the levels does not match; the lock is lost (no process
can acquire it any more); the memory of the container is nearly full, so that the kernel may kill a process. A reason
comes into force when its cause is seen, and ends when the cause has been absent for the whole cooldown, so memory that
hovers around its bound does not open and close the server every second. POST /governor/resume ends every reason at
once, except for a store that is still corrupt or lost. Full memory is then overruled until the cause is gone: the block
is allocated already, and an event takes no more memory.

Invariants: deterministic; log time (ns UTC) and causes are arguments. The controller is the only observer. It
publishes `in_force` in its vitals, where the native admission reads it (shm/native/governor.c). A successor continues
with the reasons that it finds, logs no episode twice, and restarts a cooldown. Safety does not depend on this: the
native core itself refuses to use corrupt data or to enter a section without the lock.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY

ReasonName = Literal["corrupt", "lock", "memory"]
REASONS: Final[Mapping[int, ReasonName]] = {
    EMERGENCY_CORRUPT: "corrupt",
    EMERGENCY_LOST: "lock",
    EMERGENCY_MEMORY: "memory",
}
SENTENCES: Final[Mapping[int, str]] = {
    EMERGENCY_CORRUPT: "the committed state is corrupt: a checksum of the governor or of the levels does not match",
    EMERGENCY_LOST: "the lock is beyond repair",
    EMERGENCY_MEMORY: "memory is nearly full",
}
REMEDIES: Final[Mapping[int, str]] = {
    EMERGENCY_CORRUPT: "POST /governor/reset makes new levels; a damaged governor needs a restart",
    EMERGENCY_LOST: "restart the server",
    EMERGENCY_MEMORY: "give the container more memory, or overrule this with POST /governor/resume",
}
_OVERRULABLE: Final = EMERGENCY_MEMORY


class Change(NamedTuple):
    """A reason that came into force or ended. `sentence` is logged."""

    reason: int
    began: bool
    sentence: str


class Emergency:
    """The emergency of one server. `cooldown_ns` is how long a cause must be absent before its reason ends."""

    def __init__(self, cooldown_ns: int, in_force: int = 0, overruled: int = 0, since_ns: int = 0) -> None:
        """Continue a predecessor's emergency: reasons in force, reasons overruled, and since when."""
        self.in_force = in_force
        self.overruled = overruled
        # Of the oldest reason in force, 0 when there is none: a predecessor that died while it carried out a resume may
        # have left a time without a reason.
        self.since_ns = since_ns if in_force else 0
        self._cooldown_ns = cooldown_ns
        self._causes = in_force & _OVERRULABLE  # until causes are observed: a resume may come first
        self._absent_since_ns: dict[int, int] = {}

    def observe(self, time_ns: int, causes: int) -> list[Change]:
        """Return what changes when exactly these causes are present. `time_ns` never decreases."""
        self._causes = causes
        self.overruled &= causes
        changes = []
        for reason in REASONS:
            if causes & ~self.overruled & reason:
                self._absent_since_ns.pop(reason, None)
                if not self.in_force & reason:
                    self.in_force |= reason
                    self.since_ns = self.since_ns or time_ns
                    sentence = f"{SENTENCES[reason]}; events are refused; {REMEDIES[reason]}"
                    changes.append(Change(reason, True, sentence))
            elif self.in_force & reason:
                absent_ns = time_ns - self._absent_since_ns.setdefault(reason, time_ns)
                if absent_ns >= self._cooldown_ns:
                    how = f"no longer so for {absent_ns / 1e9:.0f} s: {SENTENCES[reason]}"
                    changes.append(self._end(reason, how))
        return changes

    def overrule(self) -> list[Change]:
        """Return what changes when an operator resumes the server."""
        lasting = self._causes & ~_OVERRULABLE
        ended = [reason for reason in REASONS if self.in_force & reason & ~lasting]
        self.overruled |= self._causes & self.in_force & _OVERRULABLE
        return [self._end(reason, f"ended by an operator's order: {SENTENCES[reason]}") for reason in ended]

    def _end(self, reason: int, sentence: str) -> Change:
        self.in_force &= ~reason
        self._absent_since_ns.pop(reason, None)
        if not self.in_force:
            self.since_ns = 0
        return Change(reason, False, sentence)


def reason_names(reasons: int) -> Iterator[ReasonName]:
    """Yield the name of each reason among these bits."""
    return (name for reason, name in REASONS.items() if reasons & reason)
