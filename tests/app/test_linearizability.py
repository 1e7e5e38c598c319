"""Concurrent histories of several workers over HTTP: one order explains them, and a judge who would notice if not."""

import copy
from collections.abc import Callable

import pytest

from loadtests.faults.fault import FaultOptions
from loadtests.faults.history import History, RecallRead, violations
from loadtests.faults.linearizability import CAPACITY, DIMENSION, Client, linearizability
from testing.live_server import LiveServer
from tests.conftest import Serve


def test_one_order_explains_what_clients_of_all_workers_were_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Events, batches, repeats on another worker and on both at once, states, and recalls of one's own writes; more
    memories than there is room for.
    """
    outcome = linearizability(FaultOptions(0.01, 20251123, tmp_path_factory.mktemp("history")))

    assert outcome.broken == []
    assert outcome.count == 1000
    assert float(outcome.figures["asked while another was open, %"]) > 10


# -- the judge ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(serve: Serve) -> History:
    """Return what one client of a real server was told, one thing after the other."""
    server: LiveServer = serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events")
    client = Client(server, 1)
    client.run(60)
    for turn in (client.event, client.state, client.recall, client.again, client.batch_again, client.at_once):
        turn()
    assert client.broken == []
    return client.history


def test_the_judge_notices(history: History) -> None:
    """A true history passes; with any one answer changed, or told too late, it does not."""
    assert violations(history, DIMENSION, CAPACITY) == []

    def swapped(told: History) -> None:
        first, second = told.written[0].decisions[0], told.written[-1].decisions[0]
        first.sequence, second.sequence = second.sequence, first.sequence

    def lost(told: History) -> None:
        del told.written[10]

    def threshold(told: History) -> None:
        told.written[5].decisions[0].threshold_before += 1e-12

    def memory(told: History) -> None:
        told.written[5].decisions[0].memory_id += 1

    def phase(told: History) -> None:
        told.written[5].decisions[0].current_phase = "dreaming"

    def vector(told: History) -> None:
        accepted = next(one for one in told.written if one.decisions[0].accepted)
        accepted.vectors[0] = bytes(4 * DIMENSION)

    def state(told: History) -> None:
        told.state_reads[-1].state.ema += 1e-15

    def stale_state(told: History) -> None:
        told.state_reads.append(told.state_reads[0]._replace(sent_ns=told.state_reads[-1].sent_ns))

    def stale_recall(told: History) -> None:
        told.recalls.append(told.recalls[0]._replace(sent_ns=told.state_reads[-1].sent_ns))

    def forgotten(told: History) -> None:
        told.recalls.append(told.recalls[-1]._replace(found=0))

    def invented(told: History) -> None:
        told.recalls.append(RecallRead(2**62, 2**62, 10**6, 10**6, 10**6))

    def early(told: History) -> None:
        told.written[3] = told.written[3]._replace(sent_ns=2**62, answered_ns=2**62)

    lies: list[Callable[[History], None]] = [
        swapped, lost, threshold, memory, phase, vector, state, stale_state, stale_recall, forgotten, invented, early,
    ]  # fmt: skip
    assert [lie.__name__ for lie in lies if violations(told_with(history, lie), DIMENSION, CAPACITY) == []] == []


def told_with(history: History, lie: Callable[[History], None]) -> History:
    """Return a copy of a history with a lie in it."""
    told = copy.deepcopy(history)
    lie(told)
    return told
