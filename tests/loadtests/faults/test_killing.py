"""Each killing fault on a small scale with real servers: the promises hold, and the judge notices violations.

Nothing is asserted about time. The faults start their own servers; requesting the fixture `serve` lets each test run
on any worker process (tests/conftest.py).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loadtests.faults.arbiter_killed import arbiter_killed
from loadtests.faults.controller_killed import controller_killed, controller_stale, controller_stopped
from loadtests.faults.fault import FaultOptions, Outcome
from loadtests.faults.holder_stopped import holder_stopped
from loadtests.faults.judge import Judge, disagreements
from loadtests.faults.load import DECISION_ROW, REQUEST_ROW, ClientRecords, Events, Load, Table
from loadtests.faults.signal_storms import signal_storms
from loadtests.faults.worker_killed import worker_killed
from testing.eventually import eventually
from tests.conftest import Serve
from tests.loadtests.faults.judged import PAUSE_SECONDS, broken_promises, options_of

EVENTS = Events(8)


@pytest.mark.parametrize(
    ("fault", "scale", "times"),
    [
        (worker_killed, 0.01, 5),
        (controller_killed, 0.02, 2),
        (controller_stopped, 0.01, 1),
        (controller_stale, 0.01, 1),
        (holder_stopped, 0.02, 1),
        (signal_storms, 0.02, 6),
        (arbiter_killed, 0.05, 1),
    ],
)
def test_promises_hold(
    fault: Callable[[FaultOptions], Outcome], scale: float, times: int, serve: Serve, tmp_path: Path
) -> None:
    """Nothing is lost or duplicated, the log replays to the live state, and the server ends in order.

    A worker has to be busy to be stopped in the section: those clients do not rest.
    """
    options = options_of(tmp_path, scale, 20251122)
    outcome = fault(options._replace(pause_seconds=0.0) if fault is holder_stopped else options)

    assert broken_promises(outcome) == [], outcome
    assert times <= outcome.count


def test_the_moral_value_identifies_an_event() -> None:
    """Numbers and moral values correspond one to one."""
    numbers = [*range(1000), *range(10**6, 10**6 + 1000), 2**26 - 1]

    morals = [EVENTS.moral(number) for number in numbers]

    assert numbers == [EVENTS.number_of(moral) for moral in morals]
    assert len(numbers) == len(set(morals))
    assert min(morals) >= 0
    assert max(morals) < 1


def records(decided: Table, unanswered: list[int]) -> ClientRecords:
    """Return what a load of one client was told."""
    return ClientRecords(decided, [np.zeros(0, REQUEST_ROW)], [], unanswered)


def decisions(count: int) -> Table:
    """Return decisions on the events 0 … count − 1 in this order."""
    rows = np.zeros(count, DECISION_ROW)
    rows["number"] = np.arange(count)
    rows["position"] = rows["sequence"] = np.arange(1, count + 1)
    return rows


def test_answers_and_log_must_agree() -> None:
    """Lost, duplicated, differing and invented decisions are each found."""
    log = decisions(10)
    other = log.copy()
    other["ema"][4] = np.nextafter(0, 1)

    assert disagreements(log[::-1], (records(log[:4], []), records(log[4:], []))) == []
    assert disagreements(log, (records(log[:9], [9]),)) == []
    for logged, answered, wrong in (
        (log[:9], log, "1 acknowledged events are not in the log: [9]"),
        (np.concatenate((log, log[3:4])), log, "1 events were decided more than once: [3]"),
        (log, log[:9], "1 events of the log were acknowledged to nobody: [9]"),
        (log, other, "event 4 was told"),
    ):
        [sentence] = disagreements(logged, (records(answered, []),))
        assert sentence.startswith(wrong)


def test_an_event_of_another_client_is_noticed(serve: Serve) -> None:
    """The judge knows every event of the load; the log has one more."""
    server = serve()
    with Judge(server, EVENTS) as judge, Load(server.port, EVENTS, 1, clients=2, pause_seconds=PAUSE_SECONDS) as load:
        load.await_all()
        server.event(EVENTS.vector(2**20), EVENTS.moral(2**20))
        load.await_all()
        records = load.stop()
        verdict = judge.verdict(records)

    assert verdict.broken == [f"1 events of the log were acknowledged to nobody: [{2**20}]"]


def test_requests_without_answer_are_reported(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients retry until the deadline; their last events may have been decided, which is no contradiction."""
    monkeypatch.setattr("loadtests.faults.load.FINISH_SECONDS", 3.0)  # clients stand back on a busy machine
    server = serve()
    with Judge(server, EVENTS) as judge, Load(server.port, EVENTS, 1, clients=1, pause_seconds=PAUSE_SECONDS) as load:
        load.await_all()
        assert server.request("POST", "/governor/stop").status == 200
        eventually(lambda: b'mlsdm_refusals_total{code="stopped"}' in server.get("/metrics").body)
        records = load.stop()  # in the middle of a request, and not between two
        verdict = judge.verdict(records)

    assert verdict.broken == []
    assert {miss.what for miss in records.failed_attempts} == {"503 stopped"}
    assert records.unanswered
    assert {kind: verdict.kinds[kind] for kind in ("start", "stop")} == {"start": 1, "stop": 1}


def test_a_refused_load_raises(serve: Serve) -> None:
    """A retry would not help, so the caller gets the error."""
    server = serve()
    with Load(server.port, Events(7), 1, clients=1) as load:
        eventually(lambda: not load.alive)
        with pytest.raises(RuntimeError, match="dimension_mismatch"):
            load.stop()
