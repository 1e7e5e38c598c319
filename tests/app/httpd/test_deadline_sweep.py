"""The sweep in which connections check their deadlines."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from app.httpd.deadline_sweep import CHECKS_PER_TURN, CLOSES_PER_TURN, DeadlineSweep


class ManualLoop:
    """A sweep over `connections`, on a loop that runs one turn when the test asks for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.connections: set[Any] = set()
        self.deadline_sweep = DeadlineSweep(loop, self.connections)

    def run_turn(self) -> None:
        """Run one turn of the loop."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()


@pytest.fixture
def manual() -> Iterator[ManualLoop]:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    yield ManualLoop(loop)
    loop.close()


class FakeConnection:
    """A connection that counts its checks, and whose check raises or closes it."""

    def __init__(self, *, raises: bool = False, closes: bool = False) -> None:
        self.count = 0
        self.raises = raises
        self.closes = closes

    def check_deadlines(self) -> bool:
        self.count += 1
        if self.raises:
            raise ValueError("a failing check")
        return self.closes


def test_sweep_is_spread_over_turns(manual: ManualLoop) -> None:
    """Each turn checks CHECKS_PER_TURN connections; the next sweep starts only when each has been checked once."""
    connections = [FakeConnection() for _ in range(3 * CHECKS_PER_TURN + 1)]
    manual.connections.update(connections)
    manual.deadline_sweep.start_sweep()
    seen = [sum(connection.count for connection in connections)]
    for _ in range(5):
        manual.deadline_sweep.start_sweep()  # without effect while a sweep is running
        manual.run_turn()
        seen.append(sum(connection.count for connection in connections))

    assert seen[:4] == [CHECKS_PER_TURN, 2 * CHECKS_PER_TURN, 3 * CHECKS_PER_TURN, 3 * CHECKS_PER_TURN + 1]
    assert seen[4] > seen[3]


def test_one_turn_closes_few_connections(manual: ManualLoop) -> None:
    """A turn ends after CLOSES_PER_TURN connections were closed, because closing one takes long."""
    connections = [FakeConnection(closes=True) for _ in range(2 * CLOSES_PER_TURN)]
    manual.connections.update(connections)
    manual.deadline_sweep.start_sweep()

    assert sum(connection.count for connection in connections) == CLOSES_PER_TURN


def test_ended_connection_is_not_checked(manual: ManualLoop) -> None:
    """A connection that ended since the sweep started has no deadlines any more."""
    connections = [FakeConnection() for _ in range(CHECKS_PER_TURN + 1)]
    manual.connections.update(connections)
    manual.deadline_sweep.start_sweep()
    manual.connections.clear()
    manual.run_turn()

    assert sum(connection.count for connection in connections) == CHECKS_PER_TURN


def test_failing_check_does_not_end_the_sweep(manual: ManualLoop) -> None:
    """When the check of one connection raises, all others are still checked."""
    connections = [FakeConnection(raises=number == 5) for number in range(3 * CHECKS_PER_TURN)]
    manual.connections.update(connections)
    for _ in range(2):
        with contextlib.suppress(ValueError):
            manual.deadline_sweep.start_sweep()
        for _ in range(4):
            manual.run_turn()

    assert {connection.count for connection in connections} == {2}
