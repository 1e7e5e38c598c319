"""`python -m mlsdm.manual`: the generated files are up to date, and they list every setting with its range."""

import itertools
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from core.settings.config import Config
from core.settings.tree import values_of
from core.startup import Loaded, all_settings, default_config, load
from mlsdm import manual

ROOT = Path(__file__).parents[2]
PRODUCTION = {"MLSDM_ENV": "production", "API_KEY": "your-secret-key"}
SECTIONS: Final = manual.built_in_sections()


def load_file(name: str, environ: dict[str, str]) -> Loaded:
    return load(str(ROOT / "config" / name), environ, (), lambda _enabled: SECTIONS)


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("markdown", "docs/configuration.md"),
        ("development", "config/default.yaml"),
        ("production", "config/production-ready.yaml"),
    ],
)
def test_the_file_is_what_the_program_prints(word: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run `make manual` when this fails."""
    assert manual.main([word], SECTIONS) == 0
    assert capsys.readouterr().out == (ROOT / path).read_text()


def test_default_file_is_the_embedded_default() -> None:
    """The development file loads to what is in force without it."""
    assert load_file("default.yaml", {}).config == Config()


def test_production_file_differs_in_the_host_alone() -> None:
    """The production file is the production default, reachable from outside the container."""
    loaded = load_file("production-ready.yaml", PRODUCTION)
    expected = {**values_of(default_config("production")), "server.host": "0.0.0.0"}

    assert values_of(loaded.config) == expected
    assert loaded.config.security.rate_limiting.enabled


@pytest.mark.parametrize("name", ["default.yaml", "production-ready.yaml"])
def test_every_key_is_there_with_its_range_above_it(name: str) -> None:
    """Each setting has a line, and the line above has its range and unit."""
    settings = all_settings(SECTIONS)
    lines = (ROOT / "config" / name).read_text().splitlines()
    document = yaml.safe_load("\n".join(lines))
    assert [key for key, _ in leaves(document, "")] == list(settings)

    leaf_lines = [(above, line) for above, line in itertools.pairwise(lines) if is_leaf(line)]
    for setting, (above, line) in zip(settings.values(), leaf_lines, strict=True):
        assert line.split(":")[0].strip() == setting.key.rsplit(".", 1)[-1]
        assert above.strip() == f"# Range: {setting.range}. Unit: {setting.unit}."


@pytest.mark.parametrize("words", [[], ["staging"], ["markdown", "production"]])
def test_any_other_word_is_refused_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is 2."""
    assert manual.main(words, SECTIONS) == 2
    assert capsys.readouterr() == ("", "usage: python -m mlsdm.manual markdown | development | production\n")


def leaves(tree: dict[str, Any], section: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in tree.items():
        found += leaves(value, f"{section}{name}.") if isinstance(value, dict) else [(section + name, value)]
    return found


def is_leaf(line: str) -> bool:
    return not line.lstrip().startswith("#") and ":" in line and not line.endswith(":")
