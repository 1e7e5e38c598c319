"""What is untaken: answers that readers leave in the memory of one worker, and who has to go when they are too many.

A peer that takes its answers slowly has WRITE_SECONDS for them, whatever their route; a few hundred of such peers with
the largest answers would fill the memory in that time. Above ANSWERS_SIZE the slowest are cut off, so that the sum is
bounded and nobody else waits, neither for other answers nor for long ones.

The slowest is who would need longest for the rest at the pace at which it has been reading. So an honest reader on a
thin line outlives those who do not read; one that has just got its answer is not chosen before one that has had time;
and of several that read nothing, the one that leaves most, for longest, is the first.

Answers are written faster than the fastest peer can read, a hundred in one turn of the loop. So the readers have
CHECK_DELAY_SECONDS before it is seen who is slow, and meanwhile, at twice the limit, requests have their turn one after
the other (`app.httpd.fair_queue`) instead of all at once: what is made then is what a turn holds.

Rejected: cutting off whoever leaves most (an honest reader whose page has just been written leaves more than each of a
hundred attackers who keep theirs); making long answers wait (honest readers of the log waited, attackers had their
memory).

PERF: what each leaves is looked up only when the sum of what they left at first is over the limit: that is never, or an
attack. Each leaves more than WRITE_BUFFER_SIZE at first, so they are at most a thousand to look at, 0.3 ms.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from core.limits import ANSWERS_SIZE, WRITE_BUFFER_SIZE

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from app.httpd.connection import Connection

CHECK_DELAY_SECONDS: Final = 0.05
_FULL_SIZE: Final = 2 * ANSWERS_SIZE.value


class SlowReader:
    """One who leaves something: `given` bytes of it `since` then, and `left` of them when we last looked."""

    __slots__ = ("given", "is_cut_off", "left", "since")

    def __init__(self, size: int, now: float) -> None:
        self.given = self.left = size
        self.since = now
        self.is_cut_off = False

    def seconds_needed(self, now: float) -> tuple[float, int]:
        """Return how long it would need for the rest at its pace, in seconds; and for those who need as long, what it
        leaves. It gets a write buffer's size for nothing: who has only just begun has taken nothing yet, and of who
        reads nothing the kernel takes something all the same.
        """
        return self.left * (now - self.since) / (self.given - self.left + WRITE_BUFFER_SIZE.value), self.left


class SlowReaders:
    """What the readers of one worker leave."""

    def __init__(self, loop: "AbstractEventLoop", now: Callable[[], float]) -> None:
        """`now` in seconds, on the patient clock."""
        self.size = 0  # bytes, as far as we looked: never less than there are
        self.is_full = False
        self._loop = loop
        self._now = now
        self._readers: dict[Connection, SlowReader] = {}
        self._is_check_scheduled = False

    def add(self, connection: "Connection") -> None:
        """From now on, `connection` leaves what it has pending."""
        self.remove(connection)
        self._readers[connection] = SlowReader(connection.pending, self._now())
        self._change_size(connection.pending)
        if self.size > ANSWERS_SIZE.value and not self._is_check_scheduled:
            self._is_check_scheduled = True
            self._loop.call_later(CHECK_DELAY_SECONDS, self._disconnect_slowest)

    def remove(self, connection: "Connection") -> None:
        """It takes its answers again, or has ended."""
        reader = self._readers.pop(connection, None)
        if reader is not None:
            self._change_size(-reader.left)

    def _change_size(self, size: int) -> None:
        self.size += size
        self.is_full = self.size > _FULL_SIZE

    def _disconnect_slowest(self) -> None:
        self._is_check_scheduled = False
        now = self._now()
        for connection, reader in self._readers.items():
            self._change_size(connection.pending - reader.left)
            reader.left = connection.pending
        staying = [one for one in self._readers.items() if not one[1].is_cut_off]
        staying.sort(key=lambda one: one[1].seconds_needed(now))
        left = sum(reader.left for _, reader in staying)
        while left > ANSWERS_SIZE.value:
            connection, reader = staying.pop()
            left -= reader.left
            reader.is_cut_off = True  # its memory is free when it has ended, in the next turn of the loop
            connection.cut_off(ANSWERS_SIZE, "Readers leave too much of their answers, and the slowest is cut off")
