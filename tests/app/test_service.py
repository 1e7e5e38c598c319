"""What connections share: the rounds of the sweep. The rest is tested through connections."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest

from app.service import SWEEP_COUNT, SWEEP_ENDED_COUNT, Service


@pytest.fixture
def service() -> Iterator[Service]:
    """A service on a loop that turns when the test says so."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    yield Service(lambda _environ, _start_response: [], loop, logging.getLogger("test"))
    loop.close()


class Swept:
    """A connection that counts how often it looked at its deadlines."""

    def __init__(self, *, fails: bool = False, ends: bool = False) -> None:
        self.count = 0
        self.fails = fails
        self.ends = ends

    def sweep(self) -> bool:
        self.count += 1
        if self.fails:
            raise ValueError("a mistake of ours")
        return self.ends


def members(service: Service) -> set[Any]:
    return cast(set[Any], service.connections)


def turn(service: Service) -> None:
    """Let the loop turn once."""
    service.loop.call_soon(service.loop.stop)
    service.loop.run_forever()


def test_a_round_is_spread_over_turns(service: Service) -> None:
    """Each turn of the loop looks at a few; after the round each has been looked at once, then the next may begin."""
    connections = [Swept() for _ in range(3 * SWEEP_COUNT + 1)]
    members(service).update(connections)
    service.sweep()
    seen = [sum(connection.count for connection in connections)]
    for _ in range(5):
        service.sweep()  # one round at a time
        turn(service)
        seen.append(sum(connection.count for connection in connections))

    assert [SWEEP_COUNT, 2 * SWEEP_COUNT, 3 * SWEEP_COUNT, 3 * SWEEP_COUNT + 1] == seen[:4]
    assert seen[4] > seen[3]


def test_few_are_ended_in_one_turn(service: Service) -> None:
    """To end a connection takes long, so a turn in which many would end is cut short."""
    connections = [Swept(ends=True) for _ in range(2 * SWEEP_ENDED_COUNT)]
    members(service).update(connections)
    service.sweep()

    assert SWEEP_ENDED_COUNT == sum(connection.count for connection in connections)


def test_a_connection_that_ended_is_left_out(service: Service) -> None:
    """What was lost since the round began has no deadlines any more."""
    connections = [Swept() for _ in range(SWEEP_COUNT + 1)]
    members(service).update(connections)
    service.sweep()
    members(service).clear()
    turn(service)

    assert SWEEP_COUNT == sum(connection.count for connection in connections)


def test_one_that_fails_does_not_end_the_round(service: Service) -> None:
    """A mistake costs its connection one look, and nobody else any."""
    connections = [Swept(fails=number == 5) for number in range(3 * SWEEP_COUNT)]
    members(service).update(connections)
    for _ in range(2):
        with contextlib.suppress(ValueError):
            service.sweep()
        for _ in range(4):
            turn(service)

    assert {2} == {connection.count for connection in connections}
