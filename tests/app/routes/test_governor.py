"""Governor at run time: every setting within its range, in force from a position of the log, answered once it is."""

import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from core.commands import carry_out
from core.reference.log_replay import Scalars, replay
from core.regime import Regime
from core.settings.config import SETTINGS, Config
from core.settings.setting import Setting
from shm.block import Block
from shm.layout import Layout
from shm.store import Store
from testing import keys
from testing.block_fixture import Formed
from testing.bodies import EXAMPLE, JSON, of_json, post, problem, sent
from testing.eventually import eventually
from testing.live_server import Answer, LiveServer
from tests.conftest import SMALL, Serve

SECTIONS: Final = ("moral_filter", "cognitive_rhythm")
MEMBERS: Final = [setting for key, setting in SETTINGS.items() if key.startswith(SECTIONS)]
ORDERED: Final = ("min_threshold", "initial_threshold", "max_threshold")
SMALL_BLOCK: Final = Layout(
    dimension=8, capacity=50, payload_size_max=64, log_capacity=4096, rows=4, receipt_capacity=16
)
EVENT: Final = of_json({"event_vector": EXAMPLE, "moral_value": 0.95})


@pytest.fixture(scope="module")
def steered_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two workers without a key; only requests change the state."""
    environ = {**SMALL, "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events"}
    server = LiveServer(tmp_path_factory.mktemp("steered"), environ).start()
    yield server
    server.stop()


@pytest.fixture
def steered(steered_server: LiveServer) -> Iterator[LiveServer]:
    """That server as it started, and put back afterwards."""
    sent_command(steered_server, "reset")  # wherever earlier events have left the threshold
    configured = {section: steered_server.get("/governor").json[section] for section in SECTIONS}
    yield steered_server
    sent_command(steered_server, "resume")
    assert patch(steered_server, configured).json["configured"]


def patch(
    server: LiveServer,
    document: Any,
    media: str | None = JSON,
    connection: http.client.HTTPConnection | None = None,
) -> Answer:
    """PATCH /governor; `document` may be finished bytes."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return server.request("PATCH", "/governor", body, {} if media is None else {"Content-Type": media}, connection)


def sent_command(server: LiveServer, command: str) -> int:
    """Send a command; return the log position from which it is in force."""
    answer = server.request("POST", f"/governor/{command}")
    assert answer.status == 200, answer
    assert answer.json["command"] == command
    position: int = answer.json["position"]
    return position


def entry(server: LiveServer, position: int) -> dict[str, Any]:
    """Return an entry of the log."""
    page = server.get(f"/decisions?after={position - 1}&limit=1").json
    found: dict[str, Any] = page["entries"][0]
    return found


def bounds(setting: Setting) -> tuple[Any, Any]:
    """Return the ends of a number's range; where the lower one is not in it, a number just above."""
    meta = get_args(setting.annotation)[1]
    return (meta.ge if meta.ge is not None else meta.gt + 1e-9), meta.le


def change_of(setting: Setting, value: Any) -> dict[str, Any]:
    """Return the change of one member; thresholds that would be out of order follow it."""
    section, name = setting.key.split(".")
    if name not in ORDERED:
        return {section: {name: value}}
    defaults = Config().moral_filter
    rank = ORDERED.index(name)
    follow = {
        other: (min if place < rank else max)(getattr(defaults, other), value) for place, other in enumerate(ORDERED)
    }
    return {section: follow | {name: value}}


# -- reading and changing ----------------------------------------------------------------------------------------------


def test_the_settings_in_force_can_be_read(steered: LiveServer) -> None:
    """They are those of the configuration until a request changes them."""
    view = steered.get("/governor").json

    assert set(view) == {"moral_filter", "cognitive_rhythm", "stopped", "configured", "position", "boot_id", "log_id"}
    assert view["moral_filter"] == {
        "initial_threshold": 0.5, "min_threshold": 0.3, "max_threshold": 0.9, "dead_band": 0.05, "ema_alpha": 0.1,
        "adaptation_rate": 0.05,
    }  # fmt: skip
    assert view["cognitive_rhythm"] == {
        "wake_duration": 8, "sleep_duration": 3, "enable_consolidation": True, "clock": "events", "cycle_seconds": 1.0,
    }  # fmt: skip
    assert (view["stopped"], view["configured"]) == (False, True)
    state = steered.state()
    assert (view["position"], view["boot_id"], view["log_id"]) == (state["position"], state["boot_id"], state["log_id"])


@pytest.mark.parametrize("setting", MEMBERS, ids=lambda setting: setting.key)
def test_every_member_takes_its_whole_range(steered: LiveServer, setting: Setting) -> None:
    """From one end to the other; each change is one entry of the log, and the answer is what is in force."""
    section, name = setting.key.split(".")
    numbers = setting.type in (int, float)
    values = bounds(setting) if numbers else setting.choices or (True, False)
    configured = steered.get("/governor").json[section]

    for value in values:
        before = steered.get("/governor").json
        change = change_of(setting, value)
        answer = patch(steered, change)
        assert answer.status == 200, answer
        expected = before[section] | change[section]
        assert answer.json[section] == expected
        assert answer.json[section][name] == value
        found = steered.get("/governor").json
        assert found[section] == expected
        assert (entry(steered, found["position"])["kind"], found["position"]) == ("configure", before["position"] + 1)
        assert found["configured"] == (expected == configured)

    if numbers:
        low, high = bounds(setting)
        step = 1 if setting.type is int else 1e-6
        for value in (low - step, high + step, -1e300, 1e300):
            document = problem(patch(steered, {section: {name: value}}))
            assert (document["status"], document["field"]) == (422, setting.key), document
            assert document["expected"] == setting.range
        assert steered.get("/governor").json == found


REFUSED: Final = [
    (b"", 400, "malformed_body"),
    (b"{", 400, "malformed_body"),
    (b"nonsense", 400, "malformed_body"),
    (b'{"moral_filter": {"ema_alpha": NaN}}', 400, "malformed_body"),
    (b'{"moral_filter": {"ema_alpha": Infinity}}', 400, "malformed_body"),
    (b'{"moral_filter": {"ema_alpha": 1e999}}', 422, "field_invalid"),
    (b"[" * 100_000, 422, "field_invalid"),
    (b"null", 422, "field_invalid"),
    (b"[]", 422, "field_invalid"),
    (b"{}", 422, "change_empty"),
    (b'{"moral_filter": {}}', 422, "change_empty"),
    (b'{"moral_filter": {}, "cognitive_rhythm": {}}', 422, "change_empty"),
    (b'{"moral_filter": null}', 422, "field_invalid"),
    (b'{"moral_filter": {"ema_alpha": null}}', 422, "field_invalid"),
    (b'{"moral_filter": {"ema_alpha": "0.5"}}', 422, "field_invalid"),
    (b'{"moral_filter": {"ema_alpha": true}}', 422, "field_invalid"),
    (b'{"moral_filter": {"ema_alpha": [0.5]}}', 422, "field_invalid"),
    (b'{"cognitive_rhythm": {"wake_duration": 2.5}}', 422, "field_invalid"),
    (b'{"cognitive_rhythm": {"wake_duration": 99999999999999999999999}}', 422, "field_invalid"),
    (b'{"cognitive_rhythm": {"enable_consolidation": 1}}', 422, "field_invalid"),
    (b'{"cognitive_rhythm": {"clock": "Events"}}', 422, "field_invalid"),
    (b'{"ema_alpha": 0.5}', 422, "field_unknown"),
    (b'{"moral_filter": {"ema": 0.5}}', 422, "field_unknown"),
    (b'{"moral_filter": {"ema_alpha": 0.5, "wake_duration": 3}}', 422, "field_unknown"),
    (b'{"multi_level_memory": {"lambda_l1": 0.5}}', 422, "field_unknown"),
    (b'{"stopped": true}', 422, "field_unknown"),
    (b'{"moral_filter": {"ema_alpha": 0.2, "ema_alpha": 0.3}}', 422, "field_repeated"),
    (b'{"moral_filter": {"ema_alpha": 0.2, "ema_\\u0061lpha": 0.3}}', 422, "field_repeated"),
    (b'{"moral_filter": {"ema_alpha": 0.2}, "moral_filter": {"dead_band": 0.1}}', 422, "field_repeated"),
    (b'{"moral_filter": {"min_threshold": 0.8}}', 422, "settings_contradict"),
    (b'{"moral_filter": {"max_threshold": 0.4}}', 422, "settings_contradict"),
    (
        b'{"moral_filter": {"initial_threshold": 0.2}, "cognitive_rhythm": {"clock": "time"}}',
        422,
        "settings_contradict",
    ),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSED, ids=range(len(REFUSED)))
def test_an_invalid_change_is_refused_as_a_whole(steered: LiveServer, body: bytes, status: int, code: str) -> None:
    """No part of it is applied or logged, and the document says what was expected."""
    before = steered.get("/governor").json

    document = problem(patch(steered, body))

    assert (document["status"], document["code"]) == (status, code), document
    assert len(document["detail"]) < 500
    assert steered.get("/governor").json == before


@pytest.mark.parametrize(
    ("media", "status"),
    [
        (JSON, 200),
        ("application/merge-patch+json", 200),
        ("Application/JSON; charset=utf-8", 200),
        (None, 200),
        ("application/json-patch+json", 415),
        ("application/msgpack", 415),
        ("application/octet-stream", 415),
        ("text/plain", 415),
        ("", 415),
    ],
)
def test_a_change_is_json(steered: LiveServer, media: str | None, status: int) -> None:
    """RFC 7396 by its name or as plain JSON, and nothing else."""
    answer = patch(steered, {"moral_filter": {"ema_alpha": 0.25}}, media)

    assert answer.status == status
    if status == 415:
        assert problem(answer)["field"] == "Content-Type"


def test_a_change_holds_from_its_position_on(steered: LiveServer) -> None:
    """The decision before it was made by the old settings, the one after it by the new ones."""
    before = sent(steered, "/event", of_json({"event_vector": EXAMPLE, "moral_value": 0.85}))
    thresholds = {"min_threshold": 0.9, "initial_threshold": 0.92, "max_threshold": 0.95}

    answer = patch(steered, {"moral_filter": thresholds})
    after = sent(steered, "/event", of_json({"event_vector": EXAMPLE, "moral_value": 0.85}))

    logged = entry(steered, answer.json["position"])
    assert (before["accepted"], after["accepted"]) == (True, False)
    assert before["position"] < logged["position"] < after["position"]
    assert logged["kind"] == "configure"
    assert logged["before"]["moral_filter_threshold"] < 0.9
    assert logged["after"]["moral_filter_threshold"] == after["threshold_before"] == 0.9


def test_changes_of_different_members_at_the_same_time_both_hold(steered: LiveServer) -> None:
    """Neither overwrites the other with settings that it read before."""

    def client(name: str, values: list[float]) -> None:
        connection = steered.connect()
        for value in values:
            assert patch(steered, {"moral_filter": {name: value}}, connection=connection).status == 200
            found[name] = value
        connection.close()

    found: dict[str, float] = {}
    for turn in range(6):
        threads = [
            threading.Thread(target=client, args=(name, [0.01 * (turn + 1), 0.02 * (turn + 1)]))
            for name in ("ema_alpha", "dead_band", "adaptation_rate")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        in_force = steered.get("/governor").json["moral_filter"]
        assert {name: in_force[name] for name in found} == found


class DelayedStore(Store):
    """A store whose caller is held up behind each command that it posts, until `held` is over."""

    def __init__(self, block: Block, held: Callable[[], object]) -> None:
        super().__init__(block)
        self.held = held

    def post_command(self, *arguments: Any, **keywords: Any) -> int:
        """Post, and wait."""
        ticket = super().post_command(*arguments, **keywords)
        self.held()
        return ticket


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_command_is_answered_with_its_own_position(overwritten: bool) -> None:
    """Even when others were carried out before the caller looked; without one if the log no longer holds it."""
    formed = Formed(SMALL_BLOCK)
    controlled: list[int] = []

    def meanwhile() -> None:
        for number in range(1_500):  # more than a page of the log
            formed.decide(number)
        controlled.append(int(formed.store.apply_command(formed.now(), formed.epoch).position))  # type: ignore[union-attr] # one is pending
        for number in range(SMALL_BLOCK.log_capacity if overwritten else 0):
            formed.decide(number)
        controlled.extend(int(formed.apply(kind).position) for kind in ("stop", "reset"))

    formed.accept()
    state, position = carry_out(DelayedStore(formed.block, meanwhile), "resume", lambda _state: None)

    assert position == (None if overwritten else controlled[0])
    assert state.ticket_position == controlled[-1]
    formed.close()


def test_concurrent_commands_get_positions_of_their_own(steered: LiveServer) -> None:
    """Each answer names an entry of the log that is its command, from either worker."""

    def client(command: str) -> None:
        connection = steered.connect()
        for _ in range(6):
            answer = steered.request("POST", f"/governor/{command}", connection=connection)
            assert answer.status == 200, answer
            found.append((answer.json["position"], command))
        connection.close()

    found: list[tuple[int, str]] = []
    threads = [threading.Thread(target=client, args=(command,)) for command in ("stop", "resume", "reset")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({position for position, _ in found}) == len(found) == 18
    assert [(position, entry(steered, position)["kind"]) for position, _ in found] == found


# -- reset, stop, resume -----------------------------------------------------------------------------------------------


def test_a_reset_puts_the_governor_back_and_keeps_the_memories(steered: LiveServer) -> None:
    """Threshold, mean, rhythm and levels; settings that were changed stay, and so does what is remembered."""
    memory_id = [sent(steered, "/event", EVENT)["memory_id"] for _ in range(15)][-1]
    patch(steered, {"moral_filter": {"initial_threshold": 0.6}})
    counts = ("accepted_events_count", "latent_events_count", "memory_used")
    before = steered.state()

    position = sent_command(steered, "reset")

    state = steered.state()
    assert (entry(steered, position)["kind"], state["position"]) == ("reset", position)
    assert (state["moral_filter_threshold"], state["ema"], state["current_phase"]) == (0.6, 0.5, "wake")
    assert [state[f"L{level}_norm"] for level in (1, 2, 3)] == [0.0] * 3
    assert {name: state[name] for name in counts} == {name: before[name] for name in counts}
    assert steered.get(f"/memories/{memory_id}").status == 200


def test_while_stopped_events_are_refused_and_reads_go_on(steered: LiveServer) -> None:
    """Events get 503 with the reason, from both workers; the server is not ready, but alive."""
    memory_id = sent(steered, "/event", EVENT)["memory_id"]

    position = sent_command(steered, "stop")

    assert entry(steered, position)["kind"] == "stop"
    before = steered.state()
    for _ in range(8):  # connections spread over the workers
        for path, body in (("/event", EVENT), ("/events", of_json([json.loads(EVENT.content)] * 3))):
            answer = post(steered, path, body)
            assert (answer.status, problem(answer)["code"], answer.headers["retry-after"]) == (503, "stopped", "60")
    assert steered.state() == before
    assert post(steered, "/event", of_json({})).status == 422  # what is wrong with it is said first
    assert sent(steered, "/recall", of_json({"vector": EXAMPLE}))["matches"]
    for path in ("/state", f"/memories/{memory_id}", "/decisions", "/governor", "/livez", "/health/liveness"):
        assert steered.get(path).status == 200
    assert steered.get("/governor").json["stopped"]
    for path in ("/readyz", "/health/readiness"):
        answer = steered.get(path)
        assert (answer.status, answer.json["checks"]["admissions"]) == (
            503, {"healthy": False, "reason": "an operator has stopped admissions: POST /governor/resume"},
        )  # fmt: skip
    assert steered.get("/health/detailed").json["status"] == "unhealthy"
    assert "\nmlsdm_stopped 1.0\n" in steered.get("/metrics").body.decode()
    assert steered.request("DELETE", f"/memories/{memory_id}").status == 200
    assert patch(steered, {"moral_filter": {"ema_alpha": 0.3}}).json["stopped"]
    assert sent_command(steered, "stop") > position  # said twice, logged twice

    resumed = sent_command(steered, "resume")

    assert entry(steered, resumed)["kind"] == "resume"
    assert sent(steered, "/event", EVENT)["position"] == resumed + 1
    assert steered.get("/readyz").json["checks"]["admissions"] == {"healthy": True}
    assert sent_command(steered, "resume") == resumed + 2


def test_the_log_of_all_this_replays_to_the_live_state(steered: LiveServer) -> None:
    """Events from four clients while settings change, and resets, stops and resumes fall between them."""
    over = threading.Event()
    statuses: set[int] = set()

    def client(seed: int) -> None:
        connection, turn = steered.connect(), 0
        while not over.is_set():
            turn += 1
            body = of_json({"event_vector": EXAMPLE, "moral_value": (seed * 37 + turn * 61) % 100 / 100})
            statuses.add(steered.request("POST", "/event", body.content, body.headers, connection).status)
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(5):
        assert patch(steered, {"moral_filter": {"ema_alpha": 0.1 + turn / 10, "dead_band": turn / 50}}).status == 200
        assert patch(steered, {"cognitive_rhythm": {"wake_duration": turn + 1, "sleep_duration": 2}}).status == 200
        for command in ("reset", "stop", "resume"):
            sent_command(steered, command)
    over.set()
    for thread in threads:
        thread.join()

    assert statuses == {200, 503}
    store = steered.store()
    state = store.state()
    log: list[Any] = []
    while len(log) < state.position:
        log += store.entries(len(log) + 1, 1000)[0]
    model = replay(log, Regime.of_record(state.settings))
    assert model.position == state.position
    assert model.scalars == Scalars.of(state.scalars)


# -- over reloads and deaths -------------------------------------------------------------------------------------------


def test_a_change_holds_until_the_configuration_changes(serve: Serve, tmp_path: Path) -> None:
    """It survives a dead controller, and a reload that does not change the governor's configuration."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("moral_filter: {ema_alpha: 0.1}\n")
    server = serve(CONFIG_PATH=str(path))
    store = server.store()
    assert patch(server, {"moral_filter": {"ema_alpha": 0.4, "dead_band": 0.2}}).status == 200

    def in_force() -> tuple[float, float, bool]:
        view = server.get("/governor").json
        return view["moral_filter"]["ema_alpha"], view["moral_filter"]["dead_band"], view["configured"]

    controller = server.controller(store.block)
    os.kill(controller, signal.SIGKILL)
    eventually(lambda: server.controller(store.block) != controller)
    assert in_force() == (0.4, 0.2, False)

    path.write_text("moral_filter: {ema_alpha: 0.1}\nrecall: {phase_tolerance: 0.2}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: server.log.count("serves from row") == 4)
    assert in_force() == (0.4, 0.2, False)

    path.write_text("moral_filter: {ema_alpha: 0.15}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: in_force() == (0.15, 0.05, True))
    eventually(lambda: server.log.count("serves from row") == 6)


def test_a_command_that_is_not_carried_out_is_withdrawn(serve: Serve) -> None:
    """With controller and arbiter stopped: 503, no effect later, and events are decided meanwhile."""
    server = serve(WORKERS="1", MLSDM_COGNITIVE_RHYTHM__CLOCK="events")
    store = server.store()
    controller = server.controller(store.block)
    before = server.get("/governor").json
    answers: list[Answer] = []
    commands = [
        threading.Thread(target=lambda: answers.append(patch(server, {"moral_filter": {"ema_alpha": 0.7}}))),
        threading.Thread(target=lambda: answers.append(server.request("POST", "/governor/stop"))),
    ]

    for pid in (server.pid, controller):
        os.kill(pid, signal.SIGSTOP)
    try:
        for command in commands:
            command.start()
        answered, connection = 0, server.connect()
        while not answers:
            server.event(EXAMPLE, 0.5, connection)
            assert server.request("GET", "/livez", connection=connection).status == 200
            answered += 1
        for command in commands:
            command.join()
        connection.close()
    finally:
        for pid in (server.pid, controller):
            os.kill(pid, signal.SIGCONT)

    assert answered > 1
    assert [(answer.status, answer.json["code"], answer.headers["retry-after"]) for answer in answers] == [
        (503, "controller_busy", "1")
    ] * 2
    beat = store.block.region("vitals").heartbeat_ns
    eventually(lambda: store.block.region("vitals").heartbeat_ns > beat + 500_000_000)
    after = server.get("/governor").json
    assert (after["moral_filter"], after["stopped"]) == (before["moral_filter"], False)
    assert {"start", "decision"} >= {found["kind"] for found in server.get("/decisions").json["entries"]}
    assert patch(server, {"moral_filter": {"ema_alpha": 0.7}}).status == 200  # and the next one is carried out


def test_a_stopped_controller_carries_out_nothing_that_was_refused(serve: Serve) -> None:
    """It is replaced after a second. Until then a command is refused for good, or carried out by the successor."""
    server = serve(WORKERS="1", MLSDM_COGNITIVE_RHYTHM__CLOCK="events")
    store = server.store()

    controller = server.controller(store.block)

    os.kill(controller, signal.SIGSTOP)
    time.sleep(random.choice([0.0, 0.5]))  # until either may happen
    answer = patch(server, {"moral_filter": {"ema_alpha": 0.7}})
    eventually(lambda: server.controller(store.block) != controller)
    beat = int(store.block.region("vitals").heartbeat_ns)
    eventually(lambda: store.block.region("vitals").heartbeat_ns > beat + 200_000_000)  # some rounds of the successor

    assert answer.status in (200, 503)
    assert (server.get("/governor").json["moral_filter"]["ema_alpha"] == 0.7) == (answer.status == 200)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ema_alpha": 0.2}, "one of moral_filter, cognitive_rhythm"),
        ({"moral_filter": {"wake_duration": 3}}, "one of initial_threshold, "),
        ({"moral_filter": 3}, "an object"),
        ({"cognitive_rhythm": {"clock": "moon"}}, "one of time, events"),
    ],
)
def test_a_refusal_names_what_was_expected_there(keyed_server: LiveServer, change: Any, expected: str) -> None:
    """The members of that section, and not of another."""
    body = of_json(change)
    answer = keyed_server.request("PATCH", "/governor", body.content, body.headers | keys.bearer("admin"))

    assert answer.status == 422
    assert answer.json["expected"].startswith(expected), answer.json
    assert ("wake_duration" in answer.json["expected"]) is False
