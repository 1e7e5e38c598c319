"""The reference of the configuration: the document and the annotated files are what the types say."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import settings_manual
from core.settings.config import SETTINGS, Config, values_of
from core.startup import defaults, load

ROOT = Path(__file__).parents[2]
PRODUCTION = {"MLSDM_ENV": "production", "API_KEY": "your-secret-key"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/configuration.md", settings_manual.markdown()),
        ("config/default.yaml", settings_manual.yaml_file("development")),
        ("config/production-ready.yaml", settings_manual.yaml_file("production")),
    ],
)
def test_the_file_is_what_the_types_say(path: str, text: str) -> None:
    """Run `python -m core.settings_manual` as its docstring says when this fails."""
    assert text == (ROOT / path).read_text()


def test_default_file_is_the_embedded_default() -> None:
    """The development file loads to what holds without it."""
    assert Config() == load(str(ROOT / "config/default.yaml"), {}).config


def test_production_file_differs_in_the_host_alone() -> None:
    """The production file is the production default, reachable from outside the container."""
    loaded = load(str(ROOT / "config/production-ready.yaml"), PRODUCTION)
    expected = {**values_of(defaults("production")), "server.host": "0.0.0.0"}

    assert expected == values_of(loaded.config)
    assert loaded.config.security.rate_limiting.enabled


@pytest.mark.parametrize("name", ["default.yaml", "production-ready.yaml"])
def test_every_key_is_there_with_its_range_above_it(name: str) -> None:
    """Each leaf has a line, and the line above says its range and unit."""
    lines = (ROOT / "config" / name).read_text().splitlines()
    document = yaml.safe_load("\n".join(lines))
    assert list(SETTINGS) == [key for key, _ in leaves(document, "")]

    leaf_lines = [(above, line) for above, line in itertools.pairwise(lines) if is_leaf(line)]
    for setting, (above, line) in zip(SETTINGS.values(), leaf_lines, strict=True):
        assert line.split(":")[0].strip() == setting.key.rsplit(".", 1)[-1]
        assert above.strip() == f"# Range: {setting.range}. Unit: {setting.unit}."


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """The program prints one of the three and refuses anything else."""
    assert [
        settings_manual.main(arguments)
        for arguments in (["markdown"], ["development"], ["production"], [], ["staging"])
    ] == [0, 0, 0, 2, 2]
    assert "usage" in capsys.readouterr().err


def leaves(tree: dict[str, Any], section: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in tree.items():
        found += leaves(value, f"{section}{name}.") if isinstance(value, dict) else [(section + name, value)]
    return found


def is_leaf(line: str) -> bool:
    return not line.lstrip().startswith("#") and ":" in line and not line.endswith(":")
