"""A small run of loadtests/attack/hostile_clients.py with a hundred clients of each kind; no assertion about speed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from loadtests.attack.hostile_clients import Attack, Phase, judge, measure_steady_clients
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, LiveServer
from tests.conftest import Serve

SLOW = 99
CUT = {"head 408": SLOW // 3, "body 408": SLOW // 3, "read cut": 1}  # how many at least, by kind and what ended them
# The one refusal of an honest client that is right: the machine took the processor from whoever held the lock, for
# longer than an event may wait. Whatever hostile clients use up has another code.
STUCK = "503 store_busy"


@pytest.mark.slow
def test_slow_clients_are_disconnected_and_honest_ones_served(serve: Serve) -> None:
    """Every honest request is answered; slow heads and bodies get 408; no connection is left."""
    server = serve(MLSDM_DIMENSION="384", MLSDM_CAPACITY="100")
    for _ in range(30):
        server.request("POST", "/events", raw_batch(), {"Content-Type": "application/octet-stream"})
    attack = Attack(server, "slow", SLOW)
    failures: set[str] = set()
    requests = 0

    def cut() -> bool:
        """Heads are cut after 5 s, bodies and readers after 10, by a clock that goes slower where there is no time."""
        nonlocal requests
        measured = measure_steady_clients(server, 2)
        requests += len(measured["latencies"])
        failures.update(measured["failures"])
        ends = attack.look()["ends"]
        return all(ends.get(end, 0) >= least for end, least in CUT.items())

    eventually(cut)
    said = attack.end()

    assert failures <= {STUCK}
    assert requests > 0
    assert said["open"] == SLOW
    assert set(said["ends"]) == set(CUT)
    eventually(lambda: connections(server) == 0)


def test_greedy_clients_leave_room_for_honest_ones(serve: Serve) -> None:
    """Greedy clients are answered or refused, and every honest request is answered."""
    server = serve(MLSDM_DIMENSION="384", MLSDM_CAPACITY="100")
    attack = Attack(server, "greedy", SLOW)
    eventually(lambda: connections(server) >= SLOW)
    measured = measure_steady_clients(server, 2)
    said = attack.end()

    assert set(measured["failures"]) <= {STUCK}
    assert len(measured["latencies"]) > sum(measured["failures"].values())
    assert said["open"] == SLOW
    assert said["answered"] > 0
    assert {"greedy 503"} >= set(said["ends"])
    eventually(lambda: connections(server) == 0)


def raw_batch() -> bytes:
    """Return a hundred raw events."""
    return np.full(100, 0.95).astype("<f8").tobytes() + np.ones((100, 384), "<f4").tobytes()


def connections(server: LiveServer) -> int:
    """Return the number of connections that the workers say they have."""
    block = server.block()
    rows = [block.region("rows", number) for number in range(block.layout.rows)]
    return sum(int(row.connections) for row in rows if row.pid)


def test_honest_clients_report_every_status_but_200(small_server: LiveServer) -> None:
    """A measurement that hides failures would measure how fast a server refuses."""
    words = [str(small_server.port), "1", "1", "7"]  # another dimension than the server's
    ended = subprocess.run(
        [sys.executable, "-m", "loadtests.attack.steady_client", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=True,
    )  # fmt: skip
    said = json.loads(ended.stdout)

    assert said["failures"] == {"422 dimension_mismatch": len(said["latencies"])}


def test_judge_fails_on_latency_memory_and_failures() -> None:
    """A p99 above twice the quiet one, memory above the bound, or a failed request fails."""
    quiet = Phase(False, 1, 1.0, 1.0, 1.0, 100.0, {})
    attacked = Phase(True, 1, 1.0, 2.0, 9.0, 200.0, {})

    assert judge([quiet, attacked], "slow")
    assert judge([quiet, attacked._replace(p99=9.0)], "greedy")
    assert not judge([quiet, attacked._replace(p99=2.1)], "slow")
    assert not judge([quiet, attacked._replace(memory=1_000.0)], "slow")
    assert not judge([quiet, attacked._replace(failures={"503": 1})], "slow")
