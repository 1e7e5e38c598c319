"""Lock back-off: what a worker does when the lock was not to be had in time.

One wait in vain is all that the loop stands still for. From then on this worker only tries the lock, so that liveness
and everything else that needs no lock is answered at once, and it watches the lock itself, because the controller that
usually does may be the one that is stuck. As soon as the lock moves again, the worker waits for it again.
"""

import asyncio
import logging

from core.limits import LOCK_WAIT_MILLISECONDS
from shm.block import Block
from shm.lock_watch import INTERVAL_SECONDS, LockWatch

log = logging.getLogger("mlsdm.worker")


class LockBackoff:
    """One worker's. `loop` is its event loop."""

    def __init__(self, block: Block, loop: asyncio.AbstractEventLoop) -> None:
        self._block = block
        self._loop = loop
        self._watch = LockWatch(block)
        self._acquisitions = 0
        self._lost = False

    def lose(self) -> None:
        """Lose it, because a request is refused that has waited in vain. May be called on a pool thread.

        From the next request on: others may have arrived in the same turn of the loop as this one, and each would wait
        its 40 ms in turn. `_lose` always follows, and with it `_look`, which gives the patience back.
        """
        self._block.map.wait_ms = 0
        self._loop.call_soon_threadsafe(self._lose)

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._block.map.wait_ms = 0  # again: `_look` may have run since `lose`
        self._acquisitions = self._now()
        log.warning("the lock was not to be had within %d ms: trying only", LOCK_WAIT_MILLISECONDS.value)
        self._loop.call_later(INTERVAL_SECONDS, self._look)

    def _look(self) -> None:
        killed = self._watch.sample()
        if killed:
            log.error("removed stuck lock holder pid=%d", killed.pid)
        if self._now() == self._acquisitions and self._block.mutex_owner():
            self._loop.call_later(INTERVAL_SECONDS, self._look)
            return
        self._lost = False
        self._block.map.wait_ms = LOCK_WAIT_MILLISECONDS.value
        log.info("the lock moves again")

    def _now(self) -> int:
        return int(self._block.region("lock").acquisitions)
