"""The documents for readers, executed from top to bottom.

Each page has a directory that looks like a checkout, a port instead of 8000, and the servers that it starts. A
`console` block types its lines that begin with "$ " into a shell (a trailing backslash continues a line); a `python`
block is a program. The text after a command, or in a `text` block after a program, is its expected output; "…" matches
anything. `make run` and `mlsdm serve` start a server; a page that starts none gets one. Commands before a checkout
(git, apt) are indented and not run.

`docker` and `kubectl` are those of tests/runbook, which compare every name with the files of this project. Everything
else is real. The tables of docs/api.md are compared with their sources.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import pytest

from app.api.problem import STORE_CODES
from app.api.problem_codes import CODES
from core import limits
from core.limits import Limit
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, free_port
from tests.conftest import Serve
from tests.programs import needs
from tests.runbook.cluster import BIN, IMAGES, LOG, NOTES, STRICT
from tests.runbook.stage import check_out

PAGES: Final = ("README.md", "docs/quickstart.md", "docs/api.md", "docs/upgrade.md")
API: Final = (ROOT / "docs/api.md").read_text(encoding="utf-8")
PORT: Final = re.compile(r"\b8000\b")
SERVES: Final = re.compile(r"\b(make run|mlsdm serve)\b")
_BLOCK: Final = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
_COMMAND: Final = re.compile(r"^\$ (.*?)(?<!\\)\n", re.MULTILINE | re.DOTALL)
_ELSEWHERE: Final = re.compile(r"docker|kubectl")  # where ports are those of a container
_ROW: Final = re.compile(r"^\| (.+) \|$", re.MULTILINE)


class Step(NamedTuple):
    """Something that the reader does. `shown` is what the page says that it prints, "" when it says nothing."""

    language: str
    text: str
    shown: str


def steps(page: str) -> Iterator[Step]:
    """Yield what a page has its reader do, in order."""
    blocks = _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    for number, (language, text) in enumerate(blocks):
        if language == "python":
            following = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
            yield Step(language, text, following[1] if following[0] == "text" else "")
        elif language == "console":
            _, *parts = _COMMAND.split(text)
            yield from (Step(language, *part) for part in zip(parts[::2], parts[1::2], strict=True))


class Reader:
    """Who follows a page. `directory` is empty."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.folder = directory / "mlsdm"
        self._sessions: set[int] = set()
        programs = directory / "bin"
        for made in (self.folder, programs):
            made.mkdir()
        check_out(self.folder)
        for name, module in (("kubectl", "cluster"), ("docker", "engine")):
            script = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.runbook.{module} "$@"\n'
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        # The installation is a link to that of the tests: what is newer than it must not be installed from here.
        (programs / "make").write_text(f'#!/bin/sh\nexec {shutil.which("make")} -o .venv/installed "$@"\n')
        (programs / "make").chmod(0o755)
        self._environ = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "TMPDIR"}}
        self._environ |= {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PORT": str(self.port),
            "MLSDM_CAPACITY": "1000",  # started sooner
            BIN: str(programs),
            NOTES: str(directory / "notes"),
            LOG: str(directory / "log"),
            IMAGES: str(directory / "images"),
            STRICT: "1",
        }

    def does(self, step: Step) -> None:
        """Do what the page says, and hold what is printed against it."""
        text, shown = step.text, step.shown
        if not _ELSEWHERE.match(text):
            text, shown = (PORT.sub(str(self.port), part) for part in (text, shown))
        if step.language == "console" and SERVES.search(text):
            self.serves(text)
            return
        script = self.folder / "example.py"
        script.write_text(text, encoding="utf-8")
        words = [sys.executable, str(script)] if step.language == "python" else ["bash", "-eu", "-o", "pipefail", "-c"]
        ended = subprocess.run(
            words if step.language == "python" else [*words, text], cwd=self.folder, env=self._environ,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
        )  # fmt: skip

        assert (ended.returncode, ended.stderr) == (0, ""), text
        if shown:
            pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
            held = re.fullmatch(pattern, ended.stdout.strip(), re.DOTALL) or self._lacks_processors(text)
            assert held, f"{text}\nprinted\n{ended.stdout}"
        else:
            assert '"about:blank"' not in ended.stdout, f"{text}\nprinted\n{ended.stdout}"

    def _lacks_processors(self, text: str) -> bool:
        """Return whether a command asked for readiness, which a busy machine alone denies."""
        if "/health/readiness" not in text:
            return False
        curl = ["curl", "-s", f"http://127.0.0.1:{self.port}/health/readiness"]
        checks = json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)["checks"]
        return {name for name, check in checks.items() if not check["healthy"]} == {"system_cpu"}

    def serves(self, text: str) -> None:
        """Type what starts a server, and wait until that is ready."""
        with (self.folder.parent / "log").open("ab") as log:
            shell = subprocess.Popen(
                ["bash", "-eu", "-c", text], cwd=self.folder, env=self._environ, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self._sessions.add(shell.pid)
        ready = ["curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{self.port}/health/readiness"]
        eventually(lambda: subprocess.run(ready, check=False).returncode == 0)

    def leaves(self) -> None:
        """End the servers that are left, in order; nothing of them may stay."""
        members = []
        for member in psutil.process_iter():
            try:
                if os.getsid(member.pid) in self._sessions:
                    member.terminate()
                    members.append(member)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        _, alive = psutil.wait_procs(members, HANG_SECONDS)
        for member in alive:
            member.kill()
        assert alive == []


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """One who begins with an empty directory, and ends what was started."""
    reader = Reader(tmp_path)
    yield reader
    reader.leaves()


@needs("curl", "jq", "kubectl", "make")
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(reader: Reader, page: str) -> None:
    """Every command and program of it ends with 0, complains about nothing, and prints what the page shows."""
    todo = list(steps(page))
    if not any(SERVES.search(step.text) for step in todo):
        reader.serves("make run")

    for step in todo:
        reader.does(step)

    assert {"console", "python"} & {step.language for step in todo}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table under a heading of docs/api.md, without its head."""
    section = re.split(rf"^## {heading}\n", API, flags=re.MULTILINE)[1].split("\n## ")[0]
    return [row.split(" | ") for row in _ROW.findall(section)][1:]


def test_every_code_has_its_place_in_the_guide() -> None:
    """Once, under its status, and no other code is named."""
    named = [
        (code, int(status))
        for _, statuses in rows("Errors")
        for status, codes in re.findall(r"(\d{3}): ((?:`\w+`(?:, )?)+)", statuses)
        for code in re.findall(r"\w+", codes)
    ]

    assert sorted(named) == sorted((code, about.status) for code, about in CODES.items())


def test_who_is_to_come_back_much_later_is_told_so_by_the_guide() -> None:
    """The codes of the store are in the row that their Retry-After belongs to: none, a second, or half a minute."""
    told = {code: doing for doing, statuses in rows("Errors") for code in re.findall(r"`(\w+)`", statuses)}
    pauses = {code: CODES[code].retry_after for code in STORE_CODES.values()}
    kinds = {
        code: "Retry-After` is 30 or 60" if pause and pause >= 30 else "Retry-After` seconds" if pause else "Correct"
        for code, pause in pauses.items()
    }

    assert [code for code, words in kinds.items() if words not in told[code]] == []
    assert set(pauses.values()) == {None, 1, 30, 60}


def test_every_limit_of_the_guide_is_the_one_in_force() -> None:
    """Each limit that is answered with a code stands there with its value, and no other."""
    told = {
        (f"{limit.value:,} {limit.unit}", f"{limit.status} `{limit.code}`")
        for limit in vars(limits).values()
        if isinstance(limit, Limit) and limit.status and limit.status != 503
    }

    assert {(value, answer) for _, value, answer in rows("Limits")} == told


DOCUMENTS: Final = [*(ROOT / page for page in ("README.md", "docker-compose.yml")), *(ROOT / "docs").glob("*.md")]
_MAKES_SECRET: Final = re.compile(r"mlsdm key |openssl rand|kubectl get secret .*-o yaml")
_WRITES: Final = re.compile(r"(?:--token |-keyout |\d?>>? ?)([\w./-]*\w)")


def test_a_secret_in_a_clone_is_ignored_by_git() -> None:
    """Every file that a command of a document writes a secret or a digest into."""
    commands = [line for path in DOCUMENTS for line in path.read_text().splitlines() if _MAKES_SECRET.search(line)]
    written = {name for line in commands for name in _WRITES.findall(re.sub(r"\$\(date [^)]*\)", "20270101", line))}

    assert {"token", "keys.yaml", "reader.token", "backup/secrets-20270101.yaml"} <= written
    kept = [name for name in written if not name.startswith(("1", "/dev"))]
    ignored = subprocess.run(["git", "check-ignore", *kept], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(ignored.stdout.split()) == sorted(kept)


def test_no_line_installs_a_package_of_this_name_from_an_index() -> None:
    """The package of that name there is another project: extras are installed from the clone."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    installs = re.compile(r"(?:pip|pipx|uv)\S* (?:pip )?(?:install|add|run)\b.*[\s'\"]mlsdm\b(?!/bin)")

    assert installs.search("pip install 'mlsdm[otel]'")
    assert not installs.search(["pip install '.[otel]'", "a clone of mlsdm"][0])
    found = [
        f"{name}: {line}"
        for name in listed
        if name != "tests/test_examples.py" and (ROOT / name).is_file()
        for line in (ROOT / name).read_text(errors="replace").splitlines()
        if installs.search(line.split(" in a clone")[0])
    ]
    assert found == []


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_a_first_program_names_the_reason_of_a_refusal(serve: Serve, tmp_path: Path, page: str) -> None:
    """Here a missing or wrong key: not the traceback of a member that a problem document does not have."""
    server = serve(API_KEY="another-secret-key")
    program = next(step.text for step in steps(page) if step.language == "python")
    (tmp_path / "token").write_text("no-key-of-that-server")

    ended = subprocess.run(
        [sys.executable, "-c", PORT.sub(str(server.port), program)], cwd=tmp_path, capture_output=True, text=True,
        timeout=HANG_SECONDS, check=False,
    )  # fmt: skip

    assert ended.returncode == 1
    assert ended.stderr.startswith("unauthorised: ")
