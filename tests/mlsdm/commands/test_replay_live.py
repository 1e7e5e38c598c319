"""`mlsdm replay` against the real server: what it counts is what the server counts, and what the reference decides."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.reference.governor import Governor
from core.regime import Regime
from core.settings.config import Config
from mlsdm.commands.replay import add_arguments, run
from shm.layout import KINDS
from testing.eventually import eventually
from testing.live_server import LiveServer

COUNT, DIMENSION = 1_000, 8

Serve = Callable[..., LiveServer]


def replay(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """An archive of 1,000 events."""
    random = np.random.default_rng(11)
    path = tmp_path / "events.npz"
    vectors = random.normal(size=(COUNT, DIMENSION)).astype(np.float16)
    np.savez(path, vec=vectors, moral=random.uniform(size=COUNT).astype(np.float32))
    return path


@pytest.mark.parametrize("batch", [1, 64])
def test_counts_through_two_workers_equal_the_state_and_the_log(
    serve: Serve, recording: Path, tmp_path: Path, batch: int
) -> None:
    """With four clients, each decision is in the log once, under the sequence number that its client received."""
    server, saved = serve(WORKERS="2"), tmp_path / "decisions.npz"
    block, store = server.block(), server.store()
    eventually(lambda: len(server.workers(block)) == 2)

    assert replay(recording, "--url", f"http://127.0.0.1:{server.port}", "--batch", batch, "--save", saved) == 0

    decided, state = np.load(saved), server.state()
    entries, _ = store.entries(1, 65_536)
    logged = [entry for entry in entries if entry.kind == KINDS.index("decision")]
    accepted = int(decided["accepted"].sum())
    assert decided["sequence"].tolist() == list(range(1, COUNT + 1))
    assert (COUNT, accepted, COUNT - accepted) == (
        state["total_events_processed"],
        state["accepted_events_count"],
        state["latent_events_count"],
    )
    assert [entry.after.theta for entry in logged] == decided["threshold_after"].tolist()
    assert [entry.after.ema for entry in logged] == decided["ema"].tolist()
    assert [entry.after.accepted != entry.before.accepted for entry in logged] == decided["accepted"].tolist()


def test_one_client_on_a_fresh_server_gets_the_decisions_of_the_reference(
    serve: Serve, recording: Path, tmp_path: Path
) -> None:
    """Acceptance, threshold before and after, and EMA are equal, event by event."""
    server, saved = serve(WORKERS="2"), tmp_path / "decisions.npz"

    assert replay(recording, "--url", f"http://127.0.0.1:{server.port}", "--clients", 1, "--save", saved) == 0

    settings = Regime.of(Config()).governor
    governor, expected = Governor.initial(settings), []
    for moral in np.load(recording)["moral"]:
        before = governor.theta
        accepted, governor = governor.decide(float(moral), settings)
        expected.append((accepted, before, governor.theta, governor.ema))
    decided = np.load(saved)
    accepts, befores, afters, emas = zip(*expected, strict=True)
    assert decided["event"].tolist() == list(range(COUNT))
    assert list(accepts) == decided["accepted"].tolist()
    np.testing.assert_allclose(decided["threshold_before"], befores, rtol=0, atol=1e-9)
    np.testing.assert_allclose(decided["threshold_after"], afters, rtol=0, atol=1e-9)
    np.testing.assert_allclose(decided["ema"], emas, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 10])
def test_a_rate_limited_replay_waits_and_finishes(
    serve: Serve, recording: Path, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    """After a 429 it waits as long as asked and sends again: every event is decided, none twice."""
    server = serve(  # the last of 20 events waits 5 s for its token, unless the others took as long
        MLSDM_SECURITY__RATE_LIMITING__ENABLED="true",
        MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND="0.2",
        MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY="19",
        MLSDM_SECURITY__API_KEY_TIER="standard",
        API_KEY="the-key",
    )
    url = f"http://127.0.0.1:{server.port}"

    words = ("--url", url, "--api-key", "the-key", "--batch", batch, "--count", 20)
    assert replay(recording, *words) == 0

    report = capsys.readouterr().out
    assert "equals what was seen" in report
    assert re.search(r"^throttled   [1-9]", report, re.MULTILINE), report


def test_a_batch_above_the_burst_ends_the_replay(
    serve: Serve, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's sentence names the allowed size; waiting would not help."""
    server = serve(
        MLSDM_SECURITY__RATE_LIMITING__ENABLED="true",
        MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY="30",
        WORKERS="1",
    )

    assert replay(recording, "--url", f"http://127.0.0.1:{server.port}", "--batch", 31) == 1

    assert "31 events; expected at most 30, the burst of tier standard" in capsys.readouterr().err
