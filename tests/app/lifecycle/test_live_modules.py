"""Modules in a real server: one has everything and works; one that fails in any phase and way harms nobody else."""

import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.eventually import eventually
from testing.live_server import ROOT, Answer, LiveServer
from testing.sample_module.installed import install
from tests.conftest import SMALL

VECTOR = [0.1] * 8
API_KEY = "a-key-of-the-tests"  # the module's authenticator closes a server that has no key
KEY = {"X-API-Key": API_KEY}


def start(directory: Path, faults: str = "", **environ: str) -> LiveServer:
    """Start a server that has the sample module, told to fail by what the file `faults` holds."""
    faults_file = directory / "faults"
    faults_file.write_text(faults)
    variables = {**SMALL, **install(directory / "packages"), "SAMPLE_FAULTS_FILE": str(faults_file)}
    return LiveServer(directory, {**variables, "API_KEY": API_KEY, **environ}).start()


def report(server: LiveServer, name: str = "sample") -> dict[str, Any]:
    """Return what GET /modules says of a module."""
    modules: list[dict[str, Any]] = server.get("/modules", **KEY).json["modules"]
    return next(module for module in modules if module["name"] == name)


def child_reasons(server: LiveServer) -> list[str]:
    """Return why the module's children have ended last."""
    return [child["reason"] for child in report(server)["children"]]


def state_of(server: LiveServer) -> str:
    """Return the state of the module; "" while a worker that it kills does not answer."""
    try:
        return str(report(server)["state"])
    except (http.client.HTTPException, OSError):
        return ""


def later(server: LiveServer, milliseconds: int, **headers: str) -> Answer:
    """Ask the module's deferred route."""
    return server.get(f"/sample/later/{milliseconds}", **(headers or KEY))


def assert_server_serves(server: LiveServer) -> None:
    """The server accepts an event, is ready, and documents itself."""
    assert server.post("/event", {"event_vector": VECTOR, "moral_value": 0.95}, **KEY).status == 200
    assert server.failed_checks() == set()
    assert server.get("/openapi.json", **KEY).status == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose sample module works."""
    directory = tmp_path_factory.mktemp("modules")
    server = start(directory, SAMPLE_DIRECTORY=str(directory), MLSDM_SAMPLE__GREETING="good morning")
    eventually(lambda: report(server)["state"] == "ready" and "finished" in child_reasons(server))
    yield server
    server.stop()


def test_the_report_shows_every_module(served: LiveServer) -> None:
    """In the order in which they are opened, with phases, milliseconds and children."""
    modules = served.get("/modules", **KEY).json["modules"]
    sample = modules[1]

    assert [(module["name"], module["state"], module["reason"]) for module in modules] == [
        ("openapi", "ready", ""),
        ("sample", "ready", ""),
    ]
    assert (sample["version"], sample["required"], sample["requires"]) == ("1.2.3", False, [])
    assert set(sample["phases"]) >= {"import", "children", "routes", "open", "authenticators"}
    assert [(child["name"], child["up"]) for child in sample["children"] if child["name"] == "child0"] == [
        ("child0", True)
    ]


def test_every_worker_answers_the_same(served: LiveServer) -> None:
    """The report is in shared memory."""
    reports = set()
    for connection in served.connect_to_both_workers():
        modules = served.request("GET", "/modules", headers=KEY, connection=connection).json["modules"]
        reports.add(json.dumps([{**module, "phases": 0, "load_ms": 0, "since": ""} for module in modules]))

    assert len(reports) == 1


def test_the_modules_routes_are_served_and_documented(served: LiveServer) -> None:
    """Its settings, its deferred route, its operation in the OpenAPI document."""
    answer = later(served, 5)
    document = served.get("/openapi.json", **KEY).json

    assert answer.json == {"greeting": "good morning", "client": "API_KEY"}
    assert document["paths"]["/sample/later/{milliseconds}"]["get"]["tags"] == ["testing"]


def test_the_modules_metrics_are_scraped(served: LiveServer) -> None:
    """Those of workers and of children, and the state of each module."""
    later(served, 0)

    def scraped() -> bool:
        text = served.get("/metrics").body.decode()
        names = ("mlsdm_sample_greetings_total", "mlsdm_sample_beats_total")
        return all(re.search(rf"^{name} [1-9]", text, re.MULTILINE) for name in names)

    eventually(scraped)
    assert 'mlsdm_module_state{module="sample",state="ready"} 1.0' in served.get("/metrics").body.decode()


def test_migrations_ran_once_in_order(served: LiveServer) -> None:
    """In a process of their own, before the module was opened."""
    assert (served.directory / "migrations").read_text().split() == ["migrations", "migrations"]


def test_the_command_prints_the_report(served: LiveServer) -> None:
    """`mlsdm modules` exits with 0 while every module is ready, with 1 where there is no server or no key."""

    def run(*words: str, key: str = API_KEY) -> "subprocess.CompletedProcess[str]":
        command, environ = [sys.executable, "-m", "mlsdm", *words], {**os.environ, **served.environ, "API_KEY": key}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environ)

    url = f"http://127.0.0.1:{served.port}"
    done, closed = run("modules", "--url", url), run("modules", "--url", url, key="")
    nobody = run("modules", "--url", "http://127.0.0.1:1")
    greeted = run("greet", "you")

    assert (done.returncode, [line.split()[:2] for line in done.stdout.splitlines()]) == (
        0,
        [["module", "state"], ["openapi", "ready"], ["sample", "ready"], ["migrations", "finished"], ["child0", "up"]],
    )
    assert (closed.returncode, closed.stderr) == (
        1, f"mlsdm modules: {url} answered 401 Unauthorized: set API_KEY to a key of this server\n",
    )  # fmt: skip
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("mlsdm modules: http://127.0.0.1:1 cannot be asked: ")
    assert (greeted.returncode, greeted.stdout) == (0, "hello, you\n")


def test_a_module_that_may_authenticate_closes_a_server_without_keys(tmp_path: Path) -> None:
    """From the start, even if the module fails: a fault admits nobody."""
    server = start(tmp_path, "open:raise", API_KEY="")
    answers = {server.get("/state").status, server.get("/state", Authorization="Sample ann").status}
    eventually(lambda: "module sample is failed" in server.log)
    answers |= {server.get("/state").status, server.get("/state", Authorization="Sample ann").status}
    server.stop()

    assert answers == {401}


def test_an_authenticator_of_a_module_identifies_clients(tmp_path: Path) -> None:
    """In addition to the key; a scheme that no authenticator knows is refused."""
    server = start(tmp_path)
    eventually(lambda: later(server, 0, Authorization="Sample ann").status == 200)
    answers = {
        header: later(server, 0, Authorization=header).status for header in (f"Bearer {API_KEY}", "Other ann", "")
    }
    client = later(server, 0, Authorization="Sample ann").json["client"]
    forbidden = server.post("/governor/stop", {}, Authorization="Sample ann")
    server.stop()

    assert answers == {f"Bearer {API_KEY}": 200, "Other ann": 401, "": 401}
    assert (client, forbidden.status) == ("sample:ann", 403)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param("import:raise", "import: RuntimeError: told to raise in import", id="import_raises"),
        pytest.param("import:die", "import: the process died", id="import_dies"),
        pytest.param("import:hang", "import: it took more than ", id="import_hangs"),
        pytest.param("import:grow", "import: MemoryError: ", id="import_grows"),
        pytest.param("children:raise", "children: RuntimeError: told to raise in children", id="children_raises"),
        pytest.param("children:die", "children: the process died", id="children_dies"),
        pytest.param("children:hang", "children: it took more than ", id="children_hangs"),
        pytest.param("routes:raise", "routes: RuntimeError: told to raise in routes", id="routes_raises"),
        pytest.param("open:raise", "open: RuntimeError: told to raise in open", id="open_raises"),
        pytest.param(
            "authenticators:raise",
            "authenticators: RuntimeError: told to raise in authenticators",
            id="authenticators_raises",
        ),
        pytest.param("open:die", "left out, because 3 processes or more died in its methods", id="open_dies"),
        pytest.param("check:die", "left out, because 3 processes or more died in its methods", id="check_dies"),
    ],
)
def test_a_module_that_fails_is_left_out(tmp_path: Path, faults: str, reason: str) -> None:
    """The report, the log and the metrics say why; the server serves."""
    server = start(tmp_path, faults)
    eventually(lambda: state_of(server) == "failed")
    if faults.endswith(":die") and reason.startswith("left out"):  # until then a worker may die while it answers
        eventually(lambda: server.log.count("module sample is failed: left out") >= 2)
    found = report(server)
    assert_server_serves(server)
    metrics = server.get("/metrics").body.decode()
    answer = later(server, 0)
    server.stop()

    assert re.sub(r"[0-9.]+ s$", "", found["reason"]) == reason
    assert f": {reason}" in server.log
    assert 'mlsdm_module_state{module="sample",state="failed"} 1.0' in metrics
    assert answer.status in (404, 503)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["routes", "open", "authenticators"])
def test_a_module_that_hangs_is_opening_and_the_server_serves(tmp_path: Path, phase: str) -> None:
    """The worker accepts connections after a second; the module's routes answer 503 as soon as they are known."""
    server = start(tmp_path, f"{phase}:hang")
    found = report(server)
    assert_server_serves(server)
    answer = later(server, 0)
    server.stop()

    assert found["state"] == "opening"
    assert answer.status == (404 if phase == "routes" else 503)
    if answer.status == 503:
        assert (answer.json["code"], answer.headers["retry-after"]) == ("module_unavailable", "1")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param("raise", "exited with status 1", id="raises"),
        pytest.param("die", "exited with status 13", id="dies"),
        pytest.param("hang", "killed: it was silent", id="hangs"),
        pytest.param("grow", "killed: it passed its memory limit", id="grows"),
    ],
)
def test_a_child_that_fails_is_replaced(tmp_path: Path, kind: str, reason: str) -> None:
    """The module is degraded while its child is down, and ready again once it holds."""
    server = start(tmp_path, f"child:{kind}")
    eventually(lambda: report(server)["children"][0]["starts"] >= 2)
    found = report(server)["children"][0]
    assert_server_serves(server)
    (tmp_path / "faults").write_text("")
    eventually(lambda: report(server)["children"][0]["up"] and report(server)["state"] == "ready")
    server.stop()

    assert reason in found["reason"]


def test_a_child_may_open_longer_than_it_may_be_silent(tmp_path: Path) -> None:
    """Its silence counts from its first heartbeat after it was opened, even if it sent some while it waited before."""
    server = start(tmp_path, "open:slow", SAMPLE_DIRECTORY=str(tmp_path))
    eventually(lambda: server.log.count("sample opened as child0") == 1)
    eventually(lambda: report(server)["state"] == "ready")
    [child] = [child for child in report(server)["children"] if child["name"] == "child0"]
    server.stop()

    assert (child["up"], child["starts"], child["reason"]) == (True, 1, "")


@pytest.mark.parametrize("kind", ["raise", "die"])
def test_a_migration_that_fails_keeps_the_module_closed(tmp_path: Path, kind: str) -> None:
    """It is tried again; when it succeeds, the module is opened."""
    server = start(tmp_path, f"migration:{kind}", SAMPLE_DIRECTORY=str(tmp_path))
    eventually(lambda: "its migrations are not done" in report(server)["reason"])
    assert_server_serves(server)
    refused = later(server, 0).status
    (tmp_path / "faults").write_text("")
    eventually(lambda: later(server, 0).status == 200)
    server.stop()

    assert refused == 404


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raise", "hang", "die"])
def test_a_module_that_does_not_close_in_order_does_not_keep_the_server(tmp_path: Path, kind: str) -> None:
    """The arbiter exits with 0 and leaves no process behind, as `stop` asserts."""
    server = start(tmp_path, f"close:{kind}")
    assert_server_serves(server)

    server.stop()


@pytest.mark.slow
def test_close_has_its_time_also_after_a_drain_that_uses_up_its_own(tmp_path: Path) -> None:
    """A request does not end; `close` takes 2 s. The worker ends the drain early enough, and is not killed."""
    server = start(tmp_path, "close:slow", MLSDM_RESOURCES__SHUTDOWN_TIMEOUT="14", MLSDM_SAMPLE__CHILDREN="0")
    eventually(lambda: later(server, 0).status == 200)
    client = server.connect()
    client.request("GET", "/sample/later/3600000", headers=KEY)
    server.stop()
    client.close()

    assert len(set(re.findall(r"sample closed in pid=(\d+)", server.log))) == 2
    assert "SIGKILL" not in server.log


def test_a_thread_that_a_module_leaves_behind_does_not_keep_its_worker(tmp_path: Path) -> None:
    """The interpreter would wait for that thread; the log says where it is."""
    server = start(tmp_path, "open:thread", MLSDM_SAMPLE__CHILDREN="0", MLSDM_RESOURCES__SHUTDOWN_TIMEOUT="60")
    eventually(lambda: later(server, 0).status == 200)
    server.stop()

    assert "SIGKILL" not in server.log
    assert "(most recent call first)" in server.log


def test_a_request_that_fails_in_a_module_is_an_answer(tmp_path: Path) -> None:
    """500 where the responder raises; where it ends its worker, the next one serves."""
    server = start(tmp_path, "request:raise")
    raised = later(server, 0)
    (tmp_path / "faults").write_text("request:die")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        later(server, 0)
    (tmp_path / "faults").write_text("")
    eventually(lambda: later(server, 0).status == 200)
    server.stop()

    assert (raised.status, raised.json["code"]) == (500, "internal_error")


@pytest.mark.parametrize("status", [3, 4])
def test_no_exit_status_of_a_worker_ends_the_server(tmp_path: Path, status: int) -> None:
    """Gunicorn would halt on these two. Whatever a module exits with, the worker is replaced and nothing is lost."""
    server = start(tmp_path, f"request:exit{status}")
    assert_server_serves(server)
    accepted = server.get("/state", **KEY).json["accepted_events_count"]
    for _ in range(2):
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            later(server, 0)
    (tmp_path / "faults").write_text("")
    eventually(lambda: later(server, 0).status == 200)
    kept = server.get("/state", **KEY).json["accepted_events_count"]
    server.stop()

    assert (accepted, kept) == (1, 1)
    assert f"a worker has exited with status {status}; the server goes on" in server.log


def test_a_required_module_that_fails_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """One sentence says which and why."""
    with pytest.raises(AssertionError, match=r"modules.required: the module sample is left out: import: RuntimeError"):
        start(tmp_path, "import:raise", MLSDM_MODULES__REQUIRED="sample")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(
            "contradictions:raise", "RuntimeError: told to raise in contradictions", id="contradictions_raise"
        ),
        pytest.param("contradictions:exit3", "the process died", id="contradictions_exit"),
        pytest.param("contradictions:hang", "it took more than", id="contradictions_hang"),
        pytest.param("setting:raise", "RuntimeError: told to raise in setting", id="setting_raises"),
        pytest.param("setting:grow", "(?:MemoryError|it took more than)", id="setting_grows"),
    ],
)
def test_settings_whose_code_fails_keep_the_server_from_starting(tmp_path: Path, fault: str, reason: str) -> None:
    """It is a problem of the configuration, with the module's name; it neither ends nor blocks the arbiter."""
    with pytest.raises(AssertionError, match=rf"\nsample: the settings of this module cannot be read: {reason}"):
        start(tmp_path, fault, MLSDM_SAMPLE__GREETING="good morning")


def test_a_reload_changes_nothing_while_a_module_cannot_be_tried(tmp_path: Path) -> None:
    """Its settings make a rehearsal hang, or the machine is short of descriptors. The next HUP tries again."""
    config = tmp_path / "mlsdm.yaml"
    config.write_text("sample: {greeting: one}\n")
    server = start(tmp_path, CONFIG_PATH=str(config))
    eventually(lambda: later(server, 0).status == 200)

    def reload(greeting: str, reason: str) -> str:
        """Return what the module greets with after a reload; `reason` is what the log says of the reload."""
        config.write_text(f"sample: {{greeting: {greeting}}}\n")
        count = server.log.count(reason)
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: server.log.count(reason) > count)
        return str(later(server, 0).json["greeting"])

    (tmp_path / "faults").write_text("setting:hang")
    hung = reload("two", "sample: the settings of this module cannot be read: it took more than")
    (tmp_path / "faults").write_text("")
    _, hard = limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
    second_free = sorted({*range(len(used) + 2)} - used)[1]  # one is left: enough to read files, too few for a pipe
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (second_free, hard))
    short = reload("three", "the machine is too short of something to load the module sample")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    reload("four", "Configuration loaded")
    eventually(lambda: later(server, 0).json.get("greeting") == "four")
    server.stop()

    assert (hung, short) == ("one", "one")


def test_a_reload_with_a_required_module_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The modules are those of before."""
    config = tmp_path / "mlsdm.yaml"
    config.write_text("modules: {enabled: openapi}\n")
    environ = install(tmp_path / "packages")
    del environ["MLSDM_MODULES__ENABLED"]
    faults = tmp_path / "faults"
    faults.write_text("import:raise")
    server = LiveServer(
        tmp_path,
        {**SMALL, **environ, "CONFIG_PATH": str(config), "SAMPLE_FAULTS_FILE": str(faults), "API_KEY": API_KEY},
    ).start()
    config.write_text('modules: {enabled: "openapi, sample", required: sample}\n')
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: "configuration not reloaded, the old one stays" in server.log)
    assert_server_serves(server)
    kept = [module["name"] for module in server.get("/modules", **KEY).json["modules"]]
    config.write_text('modules: {enabled: "openapi, sample"}\nsample: {children: 0}\n')
    faults.write_text("")
    server.reload()
    eventually(lambda: report(server)["state"] == "ready")
    server.stop()

    assert kept == ["openapi"]
