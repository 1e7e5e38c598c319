"""The Locust load: 1,500 requests against a real server, and its objectives; no assertion about speed.

Locust runs in a process of its own, because importing it would patch this one for gevent.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.reference.governor import Governor
from core.regime import Regime
from core.settings.config import Config
from loadtests.load import metrics_probe, population, slo
from loadtests.load.metrics_probe import ProbeError, ServerMetrics
from loadtests.load.population import PopulationError
from loadtests.load.request_bodies import BATCH, COUNT, RequestBodies
from loadtests.load.slo import Bounds, Figures, Route
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer
from tests.conftest import Serve

TOKEN = "a-token-that-is-long-enough"
LARGE = {"MLSDM_DIMENSION": "384", "MLSDM_CAPACITY": "1000"}
ROUTES = {
    "/event, JSON": 1, "/event, base64, payload, key": 1, "/event, raw": 1, "/events, raw × 10": 10,
    "/recall, JSON": 0, "/memories/{id}": 0, "/memories/{id}, DELETE": 0, "/state": 0, "/decisions": 0,
    "/health/liveness": 0, "/health/readiness": 0, "/health/metrics": 0, "/health/detailed": 0,
}  # fmt: skip
GOOD = Figures({"/event": Route(1_000, 9.0), "/recall": Route(100, 10.0)}, 0, 0, 0, 1_000, 1_000, 1.0, 500.0)


def locust(
    *arguments: str, host: str, token: str = TOKEN, users: int = 13, requests: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run the load; latency and a busy processor are not judged, unless the arguments say so."""
    command = [str(Path(sys.executable).with_name("locust")), "-f", "loadtests/locustfile.py", "--headless"]
    run = ["-u", str(users), "-r", str(users), "--requests", str(requests), "--host", host, "--only-summary"]
    return subprocess.run(
        [*command, *run, "--p95-ms-max", "inf", "--unserved-share-max", "1", "--api-key", token, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip


def url(server: LiveServer) -> str:
    """Return where a server is."""
    return f"http://127.0.0.1:{server.port}"


# -- runs --------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_every_request_of_the_load_is_answered_and_counted(serve: Serve, tmp_path: Path) -> None:
    """No request fails, every route is used, and the server decided the acknowledged events."""
    server = serve(**LARGE, API_KEY=TOKEN)
    ended = locust(
        "--alone", "--server-pid", str(server.pid), "--json-file", str(tmp_path / "stats"),
        host=url(server), users=23, requests=1_500,
    )  # fmt: skip
    entries: list[dict[str, Any]] = json.loads((tmp_path / "stats.json").read_text())
    args = {entry["name"]: entry["num_requests"] for entry in entries}
    state = server.get("/state", Authorization=f"Bearer {TOKEN}").json

    assert ended.returncode == 0, ended.stderr
    assert sum(entry["num_failures"] for entry in entries) == 0
    assert set(ROUTES) <= set(args) <= {*ROUTES, *(f"{name}, 503" for name in ROUTES)}
    assert sum(events * args[name] for name, events in ROUTES.items()) == state["total_events_processed"]
    assert state["total_events_processed"] == state["accepted_events_count"] + state["latent_events_count"]
    assert state["accepted_events_count"] > 0
    assert state["latent_events_count"] > 0


@pytest.mark.slow
def test_each_broken_objective_is_a_sentence_and_status_1(serve: Serve) -> None:
    """A small bucket and an impossible latency bound fail; nothing else does."""
    server = serve(
        **LARGE, API_KEY=TOKEN, MLSDM_SECURITY__RATE_LIMITING__ENABLED="true", MLSDM_SECURITY__API_KEY_TIER="standard"
    )
    ended = locust("--p95-ms-max", "-1", "--growth-mb-max", "inf", host=url(server), users=23, requests=1_000)

    assert ended.returncode == 1, ended.stderr
    assert "refused because the client had no tokens (429)" in ended.stderr
    assert "the 95th percentile of " in ended.stderr
    assert " failed (" not in ended.stderr


def test_a_server_without_the_key_is_an_error_of_every_request(serve: Serve) -> None:
    """401s are errors, not refusals."""
    server = serve(**LARGE, API_KEY=TOKEN)
    ended = locust("--growth-mb-max", "inf", host=url(server), token="another")

    assert ended.returncode == 1, ended.stderr
    assert " requests failed (" in ended.stderr
    assert "refused for want" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "http://127.0.0.1:9/health/metrics was not answered"),
        (("--events", "missing.npz"), "missing.npz is not an .npz with `vec` and `moral`"),
        (("--p95-ms-max", "nan"), "nan is not a bound: expected a number, or inf"),
    ],
)
def test_an_impossible_measurement_is_one_sentence_and_status_2(arguments: Iterable[str], said: str) -> None:
    """Nothing is sent."""
    ended = locust(*arguments, host="http://127.0.0.1:9")

    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr


# -- objectives --------------------------------------------------------------------------------------------------------
def test_figures_at_the_bound_are_no_violation() -> None:
    """Bounds are inclusive."""

    assert slo.violations(GOOD, Bounds(p95_ms_max=10.0, growth_mb_max=1.0, rate_min=500.0, alone=True)) == []


def test_every_bound_has_its_sentence() -> None:
    """Each sentence has the figure and the bound."""
    bad = GOOD._replace(errors=11, refused=22, unserved=33, moved=999, growth_mb=17.0, rate=499.0)
    bounds = Bounds(p95_ms_max=9.0, error_share_max=0.001, refused_share_max=0.01, rate_min=500.0)

    assert slo.violations(bad, bounds) == [
        "the 95th percentile of /recall is 10 ms; at most 9 ms is promised",
        "499 requests per second were made; at least 500 were asked for",
        "11 of 1,100 requests failed (1.00%); at most 0.10% may",
        "22 of 1,100 requests were refused because the client had no tokens (429) (2.00%); at most 1.00% may",
        "33 of 1,100 requests were not served (503) (3.00%); at most 0.10% may",
        "1,000 events were acknowledged, but the server's count moved by 999 only",
        "the server's memory grew by 17.0 MB; at most 16 MB is promised",
    ]


def test_events_of_others_are_a_violation_only_with_alone() -> None:
    """The server counted one more than was acknowledged."""
    more = GOOD._replace(moved=1_001)

    assert slo.violations(more, Bounds()) == []
    assert [sentence.partition(":")[0] for sentence in slo.violations(more, Bounds(alone=True))] == [
        "the server's count moved by 1,001, but 1,000 events were acknowledged"
    ]


def test_unknown_figures_are_violations() -> None:
    """A restarted server, unknown memory, and no request at all."""

    assert slo.violations(GOOD._replace(moved=None), Bounds()) == [
        "the server is another one than before: it was restarted, or another server answers at its address"
    ]
    assert slo.violations(GOOD._replace(growth_mb=None), Bounds()) == [
        "the server's memory could not be measured: its metrics lack memory_usage_bytes; use --server-pid"
    ]
    assert slo.violations(GOOD._replace(growth_mb=None), Bounds(growth_mb_max=math.inf)) == []
    assert len(slo.violations(GOOD._replace(routes={}), Bounds())) == 1


def test_a_rarely_used_route_is_not_judged() -> None:
    """Its p95 would be its slowest request."""
    few = GOOD._replace(routes={"/event": Route(100, 1.0), "/health/metrics": Route(slo.JUDGED_MIN - 1, 1_000.0)})

    assert slo.violations(few, Bounds()) == []


def test_the_probe_reads_the_servers_metrics(small_server: LiveServer) -> None:
    """Boot id and event count; memory by the process id."""
    state = small_server.state()
    seen = metrics_probe.probe(url(small_server), small_server.pid)

    assert (state["boot_id"], state["total_events_processed"]) == (seen.boot_id, seen.events)
    assert seen.memory_bytes is not None
    assert 1e6 < seen.memory_bytes < 1e9


def test_metrics_are_parsed_by_name() -> None:
    """With and without memory; those of another program are refused."""
    told = 'total_events_processed 7.0\nmlsdm_build_info{boot_id="ab",version="1"} 1.0\n'

    assert ServerMetrics("ab", 7, None) == metrics_probe.read(told)
    assert ServerMetrics("ab", 7, 123) == metrics_probe.read(told + "memory_usage_bytes 123.0\n")
    assert ServerMetrics("ab", 7, 5) == metrics_probe.read(told + "memory_usage_bytes 123.0\n", 5)
    with pytest.raises(ProbeError, match="not those of an mlsdm server"):
        metrics_probe.read("up 1\n")
    with pytest.raises(ProbeError, match="cannot be read"):
        metrics_probe.read("<html>")


# -- population --------------------------------------------------------------------------------------------------------
def test_generated_vectors_resemble_embeddings() -> None:
    """Unit norm, mean cosine and nearest cosine; the same for the same seed."""
    made = population.generate(7)
    cosines = made.vectors[:500] @ made.vectors[500:].T

    assert made.vectors.shape == (4_000, 384)
    assert np.allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-5)
    assert 0.15 < cosines.mean() < 0.30
    assert 0.45 < np.median(cosines.max(axis=1)) < 0.65
    assert np.array_equal(made.vectors, population.generate(7).vectors)
    assert not np.array_equal(made.vectors, population.generate(8).vectors)


def test_generated_moral_values_move_the_governor() -> None:
    """From 0 to 1: it accepts and rejects, and its threshold moves."""
    morals = population.generate(7).morals
    settings = Regime.of(Config()).governor
    governor, verdicts, thresholds = Governor.initial(settings), [], set()
    for moral in morals.tolist():
        accepted, governor = governor.decide(moral, settings)
        verdicts.append(accepted)
        thresholds.add(governor.theta)

    assert ((morals >= 0) & (morals <= 1)).all()
    assert 0.3 < np.mean(verdicts) < 0.7
    assert len(thresholds) > 2


def test_events_are_read_in_order_and_brought_to_unit_norm(tmp_path: Path) -> None:
    """The file has half precision."""
    path = tmp_path / "events.npz"
    np.savez(path, vec=np.array([[3, 4], [0, 2]], "f2"), moral=np.array([0.25, 1], "f4"))
    read = population.read(path)

    assert read.vectors.tolist() == [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    assert read.morals.tolist() == [0.25, 1.0]
    assert read.source == "2 events of events.npz"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"vec": np.ones((2, 3))}, "is not an .npz with `vec` and `moral`"),
        ({"vec": np.ones((2, 3)), "moral": np.ones(3)}, r"have the shapes \(2, 3\) and \(3,\)"),
        ({"vec": np.ones((0, 3)), "moral": np.ones(0)}, r"have the shapes \(0, 3\)"),
        ({"vec": np.ones((2, 3)), "moral": np.array([0.5, 1.5])}, "goes from 0.5 to 1.5: expected 0 to 1"),
        ({"vec": np.ones((1, 3)), "moral": np.array([np.nan])}, "goes from nan to nan"),
        ({"vec": np.zeros((1, 3)), "moral": np.ones(1)}, "has vectors without a direction"),
    ],
)
def test_an_unfit_file_is_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    """The sentence has the file, its content, and what was expected."""
    path = tmp_path / "events.npz"
    np.savez(path, **arrays)

    with pytest.raises(PopulationError, match=said):
        population.read(path)


def test_bodies_are_equal_in_every_form() -> None:
    """Vector and moral value of the first event in four forms; few events repeat."""
    three = population.Population(np.eye(3, dtype=np.float32), np.array([0.25, 0.5, 1.0]), "three")
    bodies = RequestBodies(three)
    moral, single = next(bodies.raw)
    batch = next(bodies.batch)

    assert (moral, np.frombuffer(single, "<f4").tolist()) == ("0.25", [1.0, 0.0, 0.0])
    assert json.loads(next(bodies.json)) == {"event_vector": [1.0, 0.0, 0.0], "moral_value": 0.25}
    assert json.loads(next(bodies.base64))["moral_value"] == 0.25
    assert len(batch) == BATCH * (8 + 12)
    assert np.frombuffer(batch[: 8 * BATCH], "<f8").tolist()[:4] == [0.25, 0.5, 1.0, 0.25]
    assert np.eye(3)[(COUNT - 1) % 3].tolist() == json.loads(next(bodies.query))["vector"]
