"""Lock back-off: after one wait that failed, a worker does not wait again until the lock moves."""

import asyncio
from collections.abc import Iterator

import pytest

from app.processes.lock_backoff import LockBackoff
from core.limits import LOCK_WAIT_MILLISECONDS
from testing.block_fixture import Formed

WAIT_MS = LOCK_WAIT_MILLISECONDS.value


@pytest.fixture
def formed() -> Iterator[Formed]:
    """A block on which this process waits for the lock as a worker does."""
    formed = Formed(wait_ms=WAIT_MS)
    yield formed
    formed.close()


def test_no_request_waits_after_the_one_that_waited_in_vain(formed: Formed) -> None:
    """Not even one that arrived in the same turn of the loop."""
    loop = asyncio.new_event_loop()
    backoff = LockBackoff(formed.block, loop)

    backoff.start()

    assert formed.block.map.wait_ms == 0
    loop.close()


def test_waiting_resumes_when_the_lock_moves(formed: Formed) -> None:
    """However often the back-off was started meanwhile, even while it ends."""
    loop = asyncio.new_event_loop()
    backoff = LockBackoff(formed.block, loop)

    async def start_and_wait() -> list[int]:
        seen = []
        for _ in range(3):
            for _ in range(2):
                backoff.start()
            await asyncio.sleep(0)
            seen.append(int(formed.block.map.wait_ms))
            while not formed.block.map.wait_ms:
                await asyncio.sleep(0.005)
            seen.append(int(formed.block.map.wait_ms))
        return seen

    seen = loop.run_until_complete(asyncio.wait_for(start_and_wait(), 20))

    assert seen == [0, WAIT_MS] * 3
    loop.close()
