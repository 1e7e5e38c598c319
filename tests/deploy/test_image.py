"""The Dockerfile, checked against the tree without building it.

`make image` builds and runs the image; it needs root and minutes (deploy/image/check.py).
"""

import fnmatch
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from app.server import Server
from core import startup
from core.startup import PLACES, load

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PRODUCTION = {"MLSDM_ENV": "production", "API_KEY": "your-secret-key"}


class Instruction(NamedTuple):
    """One instruction, its lines joined."""

    name: str
    text: str


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage, the FROM first; what stands before the first stage is a stage, too."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found: list[list[Instruction]] = [[]]
    for line in filter(None, joined.splitlines()):
        name, _, text = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, " ".join(text.split())))
    return found


def texts(stage: list[Instruction], name: str) -> list[str]:
    """Return the arguments of every instruction of a name."""
    return [instruction.text for instruction in stage if instruction.name == name]


BEFORE, BUILD, FINAL = stages()
ENVIRON = dict(word.split("=", 1) for text in texts(FINAL, "ENV") for word in shlex.split(text))


def test_both_dockerfile_names_are_one_file() -> None:
    """The link is relative and in the same folder, so that it works wherever the tree is."""
    link = ROOT / "Dockerfile.neuro-engine-service"

    assert os.readlink(link) == "Dockerfile"


def test_both_stages_use_the_base_image_argument() -> None:
    """A virtual environment is bound to the interpreter that created it."""
    assert texts(BEFORE, "ARG") == ["BASE_IMAGE=python:3.12-slim"]
    assert texts(BUILD, "FROM") + texts(FINAL, "FROM") == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]


def test_the_last_stage_only_copies_two_things() -> None:
    """It has no compiler beyond its base's, and no file that the build left behind."""
    assert texts(FINAL, "RUN") == []
    assert texts(FINAL, "COPY") == [
        "--from=build /opt/mlsdm /opt/mlsdm",
        f"config/production-ready.yaml {PLACES[1]}",
    ]


def test_packages_are_those_of_the_lock() -> None:
    """The packages have hashes and are wheels; installing the service resolves no dependency."""
    installs = [text for text in texts(BUILD, "RUN") if " pip install" in text]

    assert len(installs) == 2
    assert "--require-hashes --only-binary :all: -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation --no-index ." in installs[1]


def test_the_user_is_a_number_and_not_root() -> None:
    """Kubernetes can verify a non-root user only by its number."""
    assert [re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) is not None for user in texts(FINAL, "USER")] == [True]


def test_the_image_serves_on_its_exposed_port() -> None:
    """Address, port, exposed port and environment agree; in production it refuses to start without a key."""
    assert tuple(ENVIRON[name] for name in ("HOST", "PORT", "MLSDM_ENV")) == ("0.0.0.0", "8000", "production")
    assert texts(FINAL, "EXPOSE") == [ENVIRON["PORT"]]
    loaded = load(str(ROOT / "config/production-ready.yaml"), {**PRODUCTION, "HOST": "0.0.0.0", "PORT": "8000"})
    assert (loaded.config.server.host, loaded.config.server.port) == ("0.0.0.0", 8000)


def test_the_command_is_one_that_the_project_installs() -> None:
    """It is a list, so that the process and not a shell gets the signals."""
    assert texts(FINAL, "CMD") == ['["mlsdm", "serve"]']
    assert "mlsdm" in PROJECT["project"]["scripts"]
    assert texts(FINAL, "STOPSIGNAL") == ["SIGTERM"]


def test_the_default_version_label_is_the_projects() -> None:
    """It labels an image that was built without a version."""
    assert f"VERSION={PROJECT['project']['version']}" in texts(FINAL, "ARG")


def test_every_package_is_copied() -> None:
    """A package that setuptools lists and the Dockerfile forgets would fail at the first import."""
    copied = {text.split()[0] for text in texts(BUILD, "COPY")}

    assert {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} <= copied


def test_the_build_context_has_only_copied_files() -> None:
    """.dockerignore excludes everything and then admits what the Dockerfile copies."""
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    admitted = {line[1:] for line in rest if line.startswith("!")}
    copied = {
        word for stage in (BUILD, FINAL) for text in texts(stage, "COPY") if "--from" not in text
        for word in text.split()[:-1]
    }  # fmt: skip

    assert first == "*"
    assert copied == admitted
    assert all((ROOT / path).exists() for path in admitted)
    for secret in (".env", ".git", "config/keys.yaml"):
        assert not any(fnmatch.fnmatch(secret, pattern) for pattern in admitted)


def test_the_directory_of_configurations_can_be_mounted() -> None:
    """Its config.yaml is what the image looks for in /etc/mlsdm; it is the production file, and it leads there from
    wherever the directory is mounted.
    """
    name = Path(PLACES[0]).name
    link = ROOT / "config" / name

    assert os.readlink(link) == "production-ready.yaml"
    assert load(str(link), PRODUCTION).config == load(str(ROOT / "config/production-ready.yaml"), PRODUCTION).config


def test_a_server_loads_the_file_at_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CONFIG_PATH it loads that file, and logs the path."""
    places = [tmp_path / "config.yaml", tmp_path / "production-ready.yaml"]
    monkeypatch.setattr(startup, "PLACES", tuple(map(str, places)))
    monkeypatch.delenv("CONFIG_PATH", raising=False)
    places[1].write_text("recall: {phase_tolerance: 0.2}")
    started = Server().configure()
    places[0].write_text("recall: {phase_tolerance: 0.3}")

    assert (str(places[1]), 0.2) == (started.source, started.config.recall.phase_tolerance)
    assert str(places[0]) == Server().configure().source


@pytest.mark.parametrize("script", ["deploy/image/build"])
def test_the_script_is_valid_shell(script: str) -> None:
    """It is executable."""
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], cwd=ROOT, check=False).returncode == 0
