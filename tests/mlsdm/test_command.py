"""The `mlsdm` command as a shell sees it: words in, text and an exit status out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testing.eventually import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def mlsdm(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m mlsdm` to its end."""
    command = [sys.executable, "-m", "mlsdm", *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environ},
        timeout=HANG_SECONDS,
        check=False,
    )


def test_without_arguments_it_prints_help_and_exits_2() -> None:
    """The help names every command and shows examples."""
    ended = mlsdm()

    assert ended.returncode == 2
    for line in ("mlsdm serve", "mlsdm check-config config/default.yaml", "mlsdm stat", "mlsdm replay events.npz"):
        assert f"\n  {line}" in ended.stdout


@pytest.mark.parametrize("command", ["serve", "check-config", "stat", "modules", "replay"])
def test_every_command_has_help_with_examples(command: str) -> None:
    """On a terminal without Unicode, characters that cannot be shown are replaced."""
    ended = mlsdm(command, "--help", PYTHONIOENCODING="ascii")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: mlsdm {command} [-h]")
    assert "\nexamples:\n" in ended.stdout


def test_the_version_is_that_of_the_package() -> None:
    """The version is one line, for scripts."""
    from importlib.metadata import version  # noqa: PLC0415 — beside its only use

    assert mlsdm("--version").stdout == f"mlsdm {version('mlsdm')}\n"


def test_an_unknown_command_is_refused_with_the_list_of_commands() -> None:
    """argparse refuses it with status 2."""
    ended = mlsdm("server")

    assert ended.returncode == 2
    assert "invalid choice: 'server' (choose from" in ended.stderr


def test_a_closed_pipe_ends_it_with_status_141() -> None:
    """`mlsdm check-config -v PATH | head -1` prints nothing on stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mlsdm", "check-config", "-v", "config/default.yaml"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=HANG_SECONDS, check=False)
    os.close(writing)

    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_an_error(tmp_path: Path, closed: str) -> None:
    """What it would print is lost, and the next file that it opens would get the number of the stream."""
    token = tmp_path / "web.token"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "mlsdm", "key", "web"]
    ended = [
        subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS, check=False)
        for more in ([], ["--token", str(token)])
    ]

    sentence = "" if "2>&-" in closed else "mlsdm: standard output is closed: expected a file, a pipe or /dev/null\n"
    assert [(one.returncode, one.stdout, one.stderr) for one in ended] == [(1, "", sentence)] * 2
    assert not token.exists()


@pytest.mark.parametrize("command", ["serve", "stat"])
def test_a_missing_native_core_is_one_sentence_with_the_remedy(command: str) -> None:
    """In a checkout without the extension, commands that do not need it still work."""
    program = "import sys; sys.modules['shm._native'] = None; from mlsdm.command import main; sys.exit(main())"

    def unbuilt(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=HANG_SECONDS,
            check=False,
        )

    ended = unbuilt(command)

    assert ended.returncode == 1
    assert ended.stderr.startswith("mlsdm: the native core cannot be loaded (")
    assert ended.stderr.endswith("or install the package again\n")
    assert ended.stderr.count("\n") == 1
    assert unbuilt("check-config", "config/default.yaml").returncode == 0
