"""Lock back-off: after one wait for the shared lock has timed out, a worker does not wait for it until it moves again.

So the loop is blocked for one such wait only. From then on this worker only tries the lock, and answers at once what
needs no lock, such as liveness. Meanwhile it watches the lock itself: the controller, which usually does that, may be
the process that is stuck.

Threading: `start` may be called on any thread; everything else runs on the worker's loop.
"""

import asyncio
import logging

from core.limits import LOCK_WAIT_MILLISECONDS
from shm.block import Block
from shm.lock_watch import INTERVAL_SECONDS, LockWatch

log = logging.getLogger("mlsdm.worker")


class LockBackoff:
    """The back-off of one worker. `loop` is its event loop."""

    def __init__(self, block: Block, loop: asyncio.AbstractEventLoop) -> None:
        self._block = block
        self._loop = loop
        self._watch = LockWatch(block)
        self._acquisitions = 0
        self._is_active = False

    def start(self) -> None:
        """Stop waiting for the lock. To be called when a request is refused whose wait has timed out.

        This holds from the next request on: others may have arrived in the same turn of the loop, and each would wait
        40 ms, one after the other. `_activate` always follows, and with it `_check`, which ends the back-off.
        """
        self._block.map.wait_ms = 0
        self._loop.call_soon_threadsafe(self._activate)

    def _activate(self) -> None:
        if self._is_active:
            return
        self._is_active = True
        self._block.map.wait_ms = 0  # again: `_check` may have run since `start`
        self._acquisitions = self._count_acquisitions()
        log.warning("shared lock not acquired within %d ms; switching to try-lock", LOCK_WAIT_MILLISECONDS.value)
        self._loop.call_later(INTERVAL_SECONDS, self._check)

    def _check(self) -> None:
        """End the back-off when the lock is free or has been acquired; otherwise check again later. Remove a stuck
        holder.
        """
        killed = self._watch.sample()
        if killed:
            log.error("removed stuck lock holder pid=%d", killed.pid)
        if self._count_acquisitions() == self._acquisitions and self._block.mutex_owner():
            self._loop.call_later(INTERVAL_SECONDS, self._check)
            return
        self._is_active = False
        self._block.map.wait_ms = LOCK_WAIT_MILLISECONDS.value
        log.info("shared lock moves again; waiting for it resumes")

    def _count_acquisitions(self) -> int:
        return int(self._block.region("lock").acquisitions)
