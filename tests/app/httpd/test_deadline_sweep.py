"""The rounds in which connections look at their deadlines."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from app.httpd.deadline_sweep import CHECKS_PER_TURN, CLOSES_PER_TURN, DeadlineSweep


class Circle:
    """A sweep over `members`, on a loop that turns when the test says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.members: set[Any] = set()
        self.rounds = DeadlineSweep(loop, self.members)

    def turn(self) -> None:
        """Let the loop turn once."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()


@pytest.fixture
def circle() -> Iterator[Circle]:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    yield Circle(loop)
    loop.close()


class Swept:
    """A connection that counts how often it looked at its deadlines."""

    def __init__(self, *, fails: bool = False, ends: bool = False) -> None:
        self.count = 0
        self.fails = fails
        self.ends = ends

    def check_deadlines(self) -> bool:
        self.count += 1
        if self.fails:
            raise ValueError("a mistake of ours")
        return self.ends


def test_a_round_is_spread_over_turns(circle: Circle) -> None:
    """Each turn of the loop looks at a few; after the round each has been looked at once, then the next may begin."""
    connections = [Swept() for _ in range(3 * CHECKS_PER_TURN + 1)]
    circle.members.update(connections)
    circle.rounds.start_sweep()
    seen = [sum(connection.count for connection in connections)]
    for _ in range(5):
        circle.rounds.start_sweep()  # one round at a time
        circle.turn()
        seen.append(sum(connection.count for connection in connections))

    assert seen[:4] == [CHECKS_PER_TURN, 2 * CHECKS_PER_TURN, 3 * CHECKS_PER_TURN, 3 * CHECKS_PER_TURN + 1]
    assert seen[4] > seen[3]


def test_few_are_ended_in_one_turn(circle: Circle) -> None:
    """To end a connection takes long, so a turn in which many would end is cut short."""
    connections = [Swept(ends=True) for _ in range(2 * CLOSES_PER_TURN)]
    circle.members.update(connections)
    circle.rounds.start_sweep()

    assert sum(connection.count for connection in connections) == CLOSES_PER_TURN


def test_a_connection_that_ended_is_left_out(circle: Circle) -> None:
    """What was lost since the round began has no deadlines any more."""
    connections = [Swept() for _ in range(CHECKS_PER_TURN + 1)]
    circle.members.update(connections)
    circle.rounds.start_sweep()
    circle.members.clear()
    circle.turn()

    assert sum(connection.count for connection in connections) == CHECKS_PER_TURN


def test_one_that_fails_does_not_end_the_round(circle: Circle) -> None:
    """A mistake costs its connection one look, and nobody else any."""
    connections = [Swept(fails=number == 5) for number in range(3 * CHECKS_PER_TURN)]
    circle.members.update(connections)
    for _ in range(2):
        with contextlib.suppress(ValueError):
            circle.rounds.start_sweep()
        for _ in range(4):
            circle.turn()

    assert {connection.count for connection in connections} == {2}
