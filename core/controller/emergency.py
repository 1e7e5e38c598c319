"""The emergency state: why no event is decided although no operator has said so, and when that is over.

Three things put the service into it. A checksum of the committed state or of the levels does not hold; the lock is lost
(the kernel says that nobody may ever hold it again); or the memory of the container is nearly full, where the next
thing that the kernel does is to kill one of its processes. A reason comes into force as soon as its cause is seen, and
goes when the cause has been absent for the whole cooldown, so that memory which wavers around its bound does not open
and close the service every second. It may come back as often as it likes; each time is an episode, said twice in the
log: when it begins and when it is over. An operator's order (POST /governor/resume) ends every reason at once, with one
exception: what is corrupt or lost is not made sound by an order, and is back as long as its cause lasts. Memory that is
still full is overruled until it has not been, because its owner may know better: the block was allocated long ago, and
an event takes no more.

The controller is the only one to observe; it publishes `in_force` with its vitals, and the native admission looks at
that word (shm/native/governor.c). It answers for the three ways in which a controller can be absent:

- It dies: the word stays as it is, so events stay refused; its successor is there in milliseconds and begins with the
  word that it finds, neither saying the episode again nor forgetting what was overruled. A cooldown begins anew.
- It is stopped: the arbiter kills it within two seconds, and it has died.
- It comes back, stale: it may not write, and leaves (shm/store.py).

And none of it is needed for safety: the native core refuses by itself to build on what is corrupt, and to enter a
section without a lock. What is here makes it visible, and keeps the service closed until the cause has surely gone.

Deterministic: time is an argument, CLOCK_BOOTTIME in ns, and causes come in as bits. Nothing is shared between threads.
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
    EMERGENCY_CORRUPT: "the committed state is corrupt: a checksum of the governor or of the levels does not hold",
    EMERGENCY_LOST: "the lock is beyond repair",
    EMERGENCY_MEMORY: "memory is nearly full",
}
REMEDIES: Final[Mapping[int, str]] = {
    EMERGENCY_CORRUPT: "POST /governor/reset makes new levels; a damaged governor needs a restart",
    EMERGENCY_LOST: "restart the service",
    EMERGENCY_MEMORY: "give the container more memory, or overrule this with POST /governor/resume",
}
_OVERRULABLE: Final = EMERGENCY_MEMORY


class Change(NamedTuple):
    """A reason that came into force, or went. The log gets `sentence`."""

    reason: int
    began: bool
    sentence: str


class Emergency:
    """One service's. `cooldown_ns` is how long a cause must be absent before its reason goes."""

    def __init__(self, cooldown_ns: int, in_force: int = 0, overruled: int = 0, since_ns: int = 0) -> None:
        """Begin with what a predecessor has left: reasons in force, those overruled, and since when."""
        self.in_force = in_force
        self.overruled = overruled
        # Of the oldest reason in force, 0 when there is none: who carried out an order and died may have left a time
        # without a reason.
        self.since_ns = since_ns if in_force else 0
        self._cooldown_ns = cooldown_ns
        self._causes = in_force & _OVERRULABLE  # until they are observed: an order may come first
        self._absent_since_ns: dict[int, int] = {}

    def observe(self, now_ns: int, causes: int) -> list[Change]:
        """Return what changes now that these causes, and no others, are seen. `now_ns` never decreases."""
        self._causes = causes
        self.overruled &= causes
        changes = []
        for reason in REASONS:
            if causes & ~self.overruled & reason:
                self._absent_since_ns.pop(reason, None)
                if not self.in_force & reason:
                    self.in_force |= reason
                    self.since_ns = self.since_ns or now_ns
                    sentence = f"{SENTENCES[reason]}; events are refused; {REMEDIES[reason]}"
                    changes.append(Change(reason, True, sentence))
            elif self.in_force & reason:
                absent_ns = now_ns - self._absent_since_ns.setdefault(reason, now_ns)
                if absent_ns >= self._cooldown_ns:
                    how = f"no longer so for {absent_ns / 1e9:.0f} s: {SENTENCES[reason]}"
                    changes.append(self._end(reason, how))
        return changes

    def overrule(self) -> list[Change]:
        """Return what changes by an operator's order."""
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
