"""`mlsdm check-config`: the verdict of a start, without a start."""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlsdm.commands.check_config import add_arguments, run
from testing import keys
from testing.eventually import eventually
from testing.live_server import ROOT, free_port
from tests.conftest import Serve

CONFIG = Path(__file__).resolve().parents[3] / "config"


def check(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("MLSDM_") or name in {"API_KEY", "CONFIG_PATH", "HOST", "PORT", "WORKERS", "LOG_LEVEL"}:
            monkeypatch.delenv(name)


def test_a_valid_file_prints_one_line_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict is one line on stdout."""
    assert check(CONFIG / "default.yaml") == 0
    assert capsys.readouterr() == ("Configuration valid\n", "")


def test_the_production_file_is_checked_without_the_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing key is a note; with a key there is none."""
    monkeypatch.setenv("MLSDM_ENV", "production")

    assert check(CONFIG / "production-ready.yaml") == 0
    captured = capsys.readouterr()
    assert captured.out == "Configuration valid\n"
    assert captured.err == "note: API_KEY is not set here; without it a production server refuses to start\n"

    monkeypatch.setenv("API_KEY", "your-secret-key")
    assert check("-v", CONFIG / "production-ready.yaml") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "secret" not in captured.out


def test_a_key_that_no_header_can_carry_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a missing key is excused."""
    monkeypatch.setenv("API_KEY", "two words")

    assert check(CONFIG / "default.yaml") == 1
    assert "API_KEY has a character that no header can carry" in capsys.readouterr().err


def test_a_short_key_is_a_problem_in_production_and_a_note_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is not shown, and without a key nothing is said about its length."""
    monkeypatch.setenv("API_KEY", "k7k7")

    assert check(CONFIG / "default.yaml") == 0
    assert "\nnote: API_KEY is too short: expected at least 12 characters" in "\n" + capsys.readouterr().err
    monkeypatch.setenv("MLSDM_ENV", "production")
    assert check(CONFIG / "production-ready.yaml") == 1
    err = capsys.readouterr().err
    assert "API_KEY is too short: expected at least 12 characters, because MLSDM_ENV is production" in err
    assert "k7k7" not in err


def with_keys(directory: Path, text: str) -> Path:
    """Return a configuration that names a keys file with this text."""
    (directory / "keys.yaml").write_text(text)
    (directory / "keys.yaml").chmod(0o600)
    path = directory / "config.yaml"
    path.write_text(f"security: {{keys_path: {directory / 'keys.yaml'}}}")
    return path


@pytest.mark.parametrize("environ", [{}, {"API_KEY": "your-secret-key"}])
def test_the_keys_file_is_checked_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environ: dict[str, str]
) -> None:
    """API_KEY is not counted among its keys, and production does not need it in addition to them."""
    monkeypatch.setenv("MLSDM_ENV", "production")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    first = f"keys:\n- {{id: a, role: read, digest: {'1' * 64}}}\n"

    assert check(with_keys(tmp_path, first)) == 0
    assert capsys.readouterr() == (f"Configuration valid\n1 key in {tmp_path}/keys.yaml\n", "")
    assert check(with_keys(tmp_path, first + f"- {{id: b, role: admin, digest: {'2' * 64}}}\n")) == 0
    assert capsys.readouterr() == (f"Configuration valid\n2 keys in {tmp_path}/keys.yaml\n", "")


def test_keys_that_have_expired_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Expired keys are a note, not a problem."""
    keys = "".join(
        f"- {{id: {name}, role: read, digest: {digit * 64}, expires: {year}-01-01}}\n"
        for name, digit, year in (("a", "1", 1999), ("b", "2", 2999), ("c", "3", 2000))
    )

    assert check(with_keys(tmp_path, f"keys:\n{keys}")) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n3 keys in " + str(tmp_path / "keys.yaml\n"))
    assert err == "note: 2 keys expired: a, c\n"


def test_problems_of_the_keys_file_are_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A secret in the wrong place is not printed."""
    assert check(with_keys(tmp_path, "keys: [{id: web.secret}]")) == 1
    out, err = capsys.readouterr()

    assert (out, err.count("\n")) == ("", 4)
    assert err.startswith("Configuration invalid, 3 problems:\nkeys[0].id has '.' in it (")
    assert "secret" not in err


def test_every_problem_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Problems of the file and of the variables are listed, one per line."""
    path = tmp_path / "broken.yaml"
    path.write_text("capacity: 1\nmoral_filter:\n  ema_alpha: fast\n  tresholds: 1\n")
    monkeypatch.setenv("PORT", "http")

    assert check(path) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Configuration invalid, 4 problems:\ncapacity is 1 (")
    for key in ("moral_filter.ema_alpha is fast", "moral_filter.tresholds is unknown", "server.port is http (PORT)"):
        assert f"\n{key}" in err


@pytest.mark.parametrize(("required", "status"), [("nowhere", 1), ('""', 0)])
def test_a_required_module_that_is_left_out_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], required: str, status: int
) -> None:
    """A start and a HUP refuse it, too; they go on without any other module."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text(f"modules:\n  enabled: nowhere\n  required: {required}\n")

    assert check(path) == status
    sentence = "modules.required: the module nowhere is left out: import: LookupError: no module has that name"
    assert (sentence in capsys.readouterr().err) is bool(status)


def test_verbose_prints_the_settings_that_would_be_in_force(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, overlay and variables are combined."""
    monkeypatch.setenv("MLSDM_ENV", "staging")
    monkeypatch.setenv("MLSDM_CAPACITY", "1_000")

    assert check("-v", os.devnull) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "Configuration valid",
        "# /dev/null in staging, with the variables of this environment",
    ]
    for line in ("capacity: 1000", "observability.logging.format: json", "security.rate_limiting.enabled: false"):
        assert line in lines
    assert 'security.keys_path: ""' in lines


# -- against a running server ------------------------------------------------------------------------------------------


def test_a_file_that_a_hup_accepts(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the variables of the server: here its dimension and capacity are theirs. Any of its processes will do."""
    path = tmp_path / "config.yaml"
    path.write_text("moral_filter: {max_threshold: 0.8}\ncapacity: 900\n")
    server = serve(CONFIG_PATH=str(path))

    for pid in (server.pid, server.workers(server.block())[0]):
        assert check("--against", pid, path) == 0
        sentence = f"Configuration valid; process {server.pid} accepts it at HUP, unless it has keys"
        assert capsys.readouterr() == (f"{sentence}: there are none in this one\n", "")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: server.log.count(f"Configuration loaded from {path}") == 2)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("payload_size_max: 512", "payload_size_max"),
        ("idempotency_capacity: 2048", "idempotency_capacity"),
        ("server: {host: 0.0.0.0}", "server.host"),
    ],
)
def test_a_file_that_a_hup_refuses(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, key: str
) -> None:
    """The file is valid for a start; the server refuses it, and names the same setting."""
    path = tmp_path / "config.yaml"
    path.write_text("{}\n")
    server = serve(CONFIG_PATH=str(path))
    path.write_text(text + "\n")

    assert check(path) == 0
    capsys.readouterr()
    assert check("--against", server.pid, path) == 1
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "HUP would be refused, 1 problem:")
    assert err.splitlines()[1].startswith(f"{key}")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: f"configuration not reloaded, the old one stays; problems:\n    {key}" in server.log)


def test_a_server_with_keys_refuses_a_file_without_any(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that a full disk has emptied is valid, and does not open the server to everybody."""
    path = tmp_path / "config.yaml"
    path.write_text(f"security: {{keys_path: {keys.write(tmp_path / 'keys.yaml', 'reader')}}}\n")
    server = serve(CONFIG_PATH=str(path))
    assert check("--against", server.pid, path) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"Configuration valid; process {server.pid} accepts it at HUP"
    path.write_text("")

    assert check("--against", server.pid, path) == 0
    assert capsys.readouterr().out.endswith("unless it has keys: there are none in this one\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: "the old one stays; problems:\n    security.keys_path is empty" in server.log)
    assert server.get("/state").status == 401


def test_options_of_the_command_outrank_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mlsdm serve --port` holds at a HUP, too; a port in the file alone would not be that of the server."""
    path, port = tmp_path / "config.yaml", free_port()
    path.write_text(f"server: {{port: {port}}}\ncapacity: 100\ndimension: 8\n")
    for words, status in ((["--port", str(port)], 0), ([], 1)):
        command = [sys.executable, "-m", "mlsdm", "serve", "--config", str(path), "--workers", "1", *words]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as server:
            eventually(lambda: _answers(port))
            path.write_text("server: {port: 9}\ncapacity: 100\ndimension: 8\n")
            assert check("--against", server.pid, path) == status
            path.write_text(f"server: {{port: {port}}}\ncapacity: 100\ndimension: 8\n")
            server.terminate()

    refused = f"server.port cannot change to 9 while the server runs, because it listens on 127.0.0.1 port {port}"
    assert refused in capsys.readouterr().err


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            return client.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def test_another_file_than_that_of_the_server_is_noted(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A HUP would not read it."""
    path, other = tmp_path / "config.yaml", tmp_path / "other.yaml"
    for one in (path, other):
        one.write_text("{}\n")
    server = serve(CONFIG_PATH=str(path))

    assert check("--against", server.pid, other) == 0

    assert capsys.readouterr().err == f"note: process {server.pid} reads {path} at HUP, not this file\n"


def test_a_process_of_no_server_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The process of this test, and one that has gone."""
    path = tmp_path / "config.yaml"
    path.write_text("{}\n")

    assert check("--against", os.getppid(), path) == 1
    assert check("--against", 2**22 + 1, path) == 1

    assert capsys.readouterr().err == (
        f"mlsdm check-config: process {os.getppid()} is no process of an mlsdm server, or this user may not read it\n"
        f"mlsdm check-config: there is no process {2**22 + 1}\n"
    )
