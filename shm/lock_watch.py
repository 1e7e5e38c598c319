"""The watch over the lock: tells a stuck holder from a busy lock, and removes it.

A holder can be stopped inside the section (SIGSTOP, a debugger) and then nobody else gets in. It is stuck when five
samples in a row, 20 ms apart by the observer's own count, show the same owner and the same acquisition number while the
owner's CPU time stands still and it is not waiting for a processor. A throttled or frozen container stops the observer
as well, so its samples do not advance and nobody is killed for it.

The owner is read from the futex word of the mutex itself, not from the `holder` field: a process may be stopped between
taking the mutex and signing. After the kill nothing needs to be repaired here: the kernel marks the mutex, and the next
one to enter takes back what was half done.

The controller watches all the time; a worker starts to when it has waited in vain; so no process is above the rule.
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
    """Watches one block. Call `sample` every INTERVAL_SECONDS."""

    block: Block
    _same: int = field(default=0, init=False)
    _seen: tuple[int, int, int] = field(default=(0, 0, 0), init=False)

    def sample(self) -> process.Identity | None:
        """Look once. Returns the holder that was found stuck and has been killed, else None."""
        owner = self.block.mutex_owner()
        if owner == 0 or self.block.region("lock").lost == LOST:  # a lost mutex names one who merely asked
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
