"""GET /state: one consistent state under the names that operators know."""

import threading
from typing import Any

import numpy as np

from core.reference.rhythm import Rhythm
from core.reference.synapse import Synapse
from core.reference.vector import norm
from core.regime import Regime
from core.settings.config import Config
from testing.bodies import accepted, of_json, of_raw, sent
from testing.live_server import LiveServer

MEMBERS = {
    "L1_norm", "L2_norm", "L3_norm", "current_phase", "latent_events_count", "accepted_events_count",
    "total_events_processed", "moral_filter_threshold", "ema", "memory_used", "capacity", "dimension", "step",
    "position", "boot_id", "log_id",
}  # fmt: skip


def test_the_state_has_the_documented_members(still_server: LiveServer) -> None:
    """Types, ranges, and the sizes that were configured."""
    state = still_server.state()

    assert set(state) == MEMBERS
    assert (state["capacity"], state["dimension"]) == (100, 8)
    assert state["current_phase"] in ("wake", "sleep")
    assert 0.3 <= state["moral_filter_threshold"] <= 0.9
    assert 0 <= state["ema"] <= 1
    assert state["memory_used"] <= state["capacity"]
    assert [len(bytes.fromhex(state[name])) for name in ("boot_id", "log_id")] == [16, 16]
    assert state["boot_id"] != state["log_id"]


def test_a_fresh_server_is_empty(serve: Any) -> None:
    """Threshold and mean at their initial values, awake, no memory; one log entry, the controller's first."""
    server = serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events")

    state = server.state()

    assert (state["moral_filter_threshold"], state["ema"], state["current_phase"]) == (0.5, 0.5, "wake")
    assert (state["L1_norm"], state["L2_norm"], state["L3_norm"]) == (0.0, 0.0, 0.0)
    assert (state["total_events_processed"], state["memory_used"], state["step"], state["position"]) == (0, 0, 0, 1)


def test_levels_are_those_of_the_reference(serve: Any) -> None:
    """The norms follow the cascade of the accepted vectors, through wake and sleep, to the last bit."""
    server = serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events")
    vectors = np.random.default_rng(3).standard_normal((12, 8)).astype(np.float32) * 3
    model = reference(vectors)

    for number, vector in enumerate(vectors):
        server.event(vector, 1.0)
        state = server.state()
        assert model[number] == (state["L1_norm"], state["L2_norm"], state["L3_norm"])


def reference(vectors: Any) -> list[tuple[float, ...]]:
    """Return the norms of the levels after each of the accepted vectors, when each is also a step of the rhythm."""
    regime = Regime.of(Config())
    settings, rhythm_settings = regime.synapse, regime.rhythm._replace(by_events=True)
    levels, rhythm, norms = Synapse.initial(vectors.shape[1]), Rhythm.initial(rhythm_settings), []
    for vector in vectors:
        levels = levels.after_run(vector, settings)
        if rhythm.runs_cascade(rhythm_settings):
            levels = levels.after_run(None, settings)
        rhythm = rhythm.after_step(rhythm_settings)
        norms.append(tuple(norm(level) for level in levels))
    return norms


def test_total_is_accepted_plus_rejected_while_events_flow(still_server: LiveServer) -> None:
    """Every answer is of one position: no reader ever sees a sum that is off by one, or time run backwards."""
    body = of_raw(np.linspace(0, 1, 200).tobytes() + np.ones((200, 8), np.float32).tobytes())
    writer = threading.Thread(target=lambda: [sent(still_server, "/events", body) for _ in range(20)])
    seen = []

    writer.start()
    while writer.is_alive():
        seen.append(still_server.state())
    writer.join()
    seen.append(still_server.state())

    for state in seen:
        assert state["total_events_processed"] == state["accepted_events_count"] + state["latent_events_count"]
        assert state["step"] == state["total_events_processed"]
    positions = [state["position"] for state in seen]
    assert positions == sorted(positions)


def test_memory_used_never_passes_the_capacity(still_server: LiveServer) -> None:
    """The oldest makes room for the newest."""
    sent(still_server, "/events", of_json([{"event_vector": [1.0] * 8, "moral_value": 1.0}] * 250))

    assert still_server.state()["memory_used"] == 100


def test_reading_changes_nothing(still_server: LiveServer) -> None:
    """Not by any route that reads."""
    memory_id = accepted(still_server)["memory_id"]
    before = still_server.state()

    for path in (f"/memories/{memory_id}", "/decisions", "/state", "/health/detailed", "/health/metrics"):
        assert still_server.get(path).status == 200
    sent(still_server, "/recall", of_json({"vector": [1.0] * 8}))

    assert still_server.state() == before
