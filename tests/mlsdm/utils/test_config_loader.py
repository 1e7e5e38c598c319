"""`ConfigLoader`: the validation step that operators paste, as they paste it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings.config import Config, effective
from core.startup import ConfigurationError
from mlsdm.utils.config_loader import ConfigLoader

ROOT = Path(__file__).resolve().parents[3]
VALIDATION = """
from mlsdm.utils.config_loader import ConfigLoader
config = ConfigLoader.load_config('{path}')
print('Configuration valid')
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("MLSDM_") or name in {"API_KEY", "CONFIG_PATH", "HOST", "PORT", "WORKERS", "LOG_LEVEL"}:
            monkeypatch.delenv(name)


def validate(path: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the lines in a process of their own, from the top of the source tree."""
    return subprocess.run(
        [sys.executable, "-c", VALIDATION.format(path=path)],
        cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("environ", [{}, {"MLSDM_ENV": "production"}])
def test_the_production_file_is_valid(environ: dict[str, str]) -> None:
    """It is valid in production, too, when the key is missing."""
    done = validate("config/production-ready.yaml", **environ)

    assert (done.returncode, done.stdout, done.stderr) == (0, "Configuration valid\n", "")


def test_a_bad_file_fails_and_names_every_problem(tmp_path: Path) -> None:
    """The traceback ends with a line for each problem, and nothing is printed on stdout."""
    path = tmp_path / "config.yaml"
    path.write_text("capacity: 1\ndimensoin: 8\nmoral_filter: {min_threshold: 0.8}\n")
    done = validate(str(path))

    assert (done.returncode, done.stdout) == (1, "")
    for named in ("capacity is 1", "dimensoin is unknown", "moral_filter.min_threshold is 0.8"):
        assert named in done.stderr


def test_load_config_returns_the_complete_tree(tmp_path: Path) -> None:
    """A file with one setting gives the whole tree in plain values."""
    path = tmp_path / "config.yaml"
    path.write_text("moral_filter: {ema_alpha: 0.2}\n")
    config = ConfigLoader.load_config(path)
    expected = effective(Config())
    expected["moral_filter"]["ema_alpha"] = 0.2

    assert config == expected


def test_the_exception_is_that_of_a_start() -> None:
    """A script may catch it and list the problems."""
    with pytest.raises(ConfigurationError) as refusal:
        ConfigLoader.load_config("/nowhere/config.yaml")

    assert refusal.value.problems == [
        "/nowhere/config.yaml cannot be read (No such file or directory): expected a YAML file"
    ]
