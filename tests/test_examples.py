"""The examples of README.md, run as a reader would run them.

Two kinds of fenced blocks are examples: `console`, whose lines that begin with "$ " are typed into a shell (a line that
ends in a backslash goes on in the next one), and `python`. Each runs against a live server, which stands in for the one
at 127.0.0.1:8000. Commands that start, install or end things are the Makefile's and the command's own tests' business:
only those that talk to the server are run, and there must be some.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from loadtests.live import ROOT, LiveServer

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
PORT: Final = re.compile(r"\b8000\b")
_BLOCK: Final = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND: Final = re.compile(r"^\$ (.*?)(?<!\\)$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return [text for name, text in _BLOCK.findall(README) if name == language]


CURL: Final = [
    commands
    for block in blocks("console")
    if (commands := [command for command in _COMMAND.findall(block) if re.search(r"\bcurl\b", command)])
]
PYTHON: Final = blocks("python")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server as `make run` starts it: the default dimension, no key; fewer slots."""
    server = LiveServer(tmp_path_factory.mktemp("readme"), {"MLSDM_CAPACITY": "1000"})
    yield server.start()
    server.stop()


def run(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a directory of its own, as far from this checkout as a reader's."""
    environ = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "TMPDIR"}}
    environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `python` is the one with the packages
    return subprocess.run(
        arguments, cwd=directory, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def here(text: str, server: LiveServer) -> str:
    """Return an example with the live server in the place of the documented one."""
    assert PORT.search(text), "an example that does not talk to the documented server"
    return PORT.sub(str(server.port), text)


def test_the_readme_has_examples_of_both_kinds() -> None:
    """At least one curl command and one Python program."""

    assert CURL
    assert PYTHON


@pytest.mark.parametrize("commands", CURL)
def test_curl_examples_work(server: LiveServer, tmp_path: Path, commands: list[str]) -> None:
    """Those of one block build on one another. Each ends with 0 and is answered with no problem document."""
    for command in commands:
        ended = run(["bash", "-eu", "-o", "pipefail", "-c", here(command, server)], tmp_path)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout
        assert '"about:blank"' not in ended.stdout


@pytest.mark.parametrize("program", PYTHON)
def test_a_python_example_works(server: LiveServer, tmp_path: Path, program: str) -> None:
    """It ends with 0 and complains about nothing."""
    script = tmp_path / "example.py"
    script.write_text(here(program, server), encoding="utf-8")

    ended = run([sys.executable, str(script)], tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
