"""Lock watch: tells a stuck lock holder from a busy lock, and kills the stuck one.

A process that is stopped inside the section (SIGSTOP, a debugger) locks out all others. It counts as stuck if five
samples in a row, 20 ms apart, show the same owner and the same number of acquisitions, the owner's CPU time does not
grow, and it does not wait for a processor. A throttled or frozen container also stops the observer, so a holder in such
a container is not killed.

Invariants: the owner is read from the futex word of the mutex, not from the field `holder`, because a process may be
stopped between locking the mutex and storing its pid. Nothing is repaired here after a kill: the kernel marks the
mutex, and the next process that takes the lock undoes the unfinished change.
Threading: the controller always watches; a worker watches after it has failed to acquire the lock. So a stuck
controller is killed, too.
"""

from dataclasses import dataclass, field
from typing import Final

from shm import process
from shm.block import Block
from shm.layout import LOST

SAMPLES: Final = 5
INTERVAL_SECONDS: Final = 0.02


@dataclass
class LockWatch:
    """The watch over the lock of one block. Call `sample` every INTERVAL_SECONDS."""

    block: Block
    _same: int = field(default=0, init=False)
    _seen: tuple[int, int, int] = field(default=(0, 0, 0), init=False)

    def sample(self) -> process.Identity | None:
        """Take one sample. Returns the holder if it was stuck and has been killed, else None."""
        owner = self.block.mutex_owner()
        if owner == 0 or self.block.region("lock").lost == LOST:  # a lost mutex names its last caller
            self._same = 0
            return None
        pid = process.process_of_thread(owner)
        holder = process.identify(pid)
        seen = (owner, int(self.block.region("lock").acquisitions), process.cpu_time_ns(pid))
        if seen != self._seen or holder.runnable:
            self._seen = seen
            self._same = 1
            return None
        self._same += 1
        if self._same < SAMPLES:
            return None
        self._same = 0
        still_held = self.block.mutex_owner() == owner and int(self.block.region("lock").acquisitions) == seen[1]
        return holder if still_held and process.kill(holder) else None
