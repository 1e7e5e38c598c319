"""Connection counts: which workers count when one looks for the emptiest."""

from collections.abc import Iterator

import pytest

from app.httpd.acceptor import NOT_ACCEPTING
from app.processes.connection_counts import ConnectionCounts
from core.heartbeat import SILENCE_SECONDS
from shm import process
from testing.block_fixture import Formed

NOW_NS = 10**12
SILENCE_NS = int(SILENCE_SECONDS * 1e9)


@pytest.fixture
def formed() -> Iterator[Formed]:
    """A real block with four rows."""
    block = Formed()
    yield block
    block.close()


def claim(formed: Formed, row: int, connections: int, heartbeat_ns: int = NOW_NS) -> ConnectionCounts:
    """Give a row to this process, as a worker claims it; return its counts."""
    formed.block.region("rows", row).pid = process.identify_self().pid
    formed.block.region("rows", row).heartbeat_ns = heartbeat_ns
    view = ConnectionCounts(formed.block, row, lambda: NOW_NS)
    view.publish(connections)
    return view


def test_fewest_is_the_minimum_over_all_live_workers(formed: Formed) -> None:
    """Each worker sees the same number, its own included."""
    views = [claim(formed, row, connections) for row, connections in enumerate((5, 2, 9))]

    assert [view.fewest() for view in views] == [2, 2, 2]
    views[1].publish(11)
    assert [view.fewest() for view in views] == [5, 5, 5]


def test_a_free_row_does_not_count_as_an_empty_worker(formed: Formed) -> None:
    """An unclaimed row holds zero connections."""
    only = claim(formed, 2, 7)

    assert only.fewest() == 7


def test_a_worker_without_a_fresh_heartbeat_does_not_count(formed: Formed) -> None:
    """A worker that died or hangs must not keep the others from accepting."""
    busy = claim(formed, 0, 8)
    claim(formed, 1, 0, NOW_NS - SILENCE_NS)

    assert busy.fewest() == 8
    claim(formed, 1, 0, NOW_NS - SILENCE_NS + 1)
    assert busy.fewest() == 0


def test_a_worker_without_any_fresh_row_sees_its_own_count(formed: Formed) -> None:
    """Between claiming its row and its first heartbeat no row may be fresh."""
    fresh = claim(formed, 0, 3, heartbeat_ns=0)

    assert fresh.fewest() == 3


def test_a_worker_that_does_not_accept_is_never_the_emptiest(formed: Formed) -> None:
    """It publishes a number above all others."""
    leaving, staying = claim(formed, 0, 1), claim(formed, 1, 6)

    leaving.publish(NOT_ACCEPTING)

    assert staying.fewest() == 6
