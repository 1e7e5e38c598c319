"""The decoder: one setting is found without the others, and has the value that all of them together give it."""

from pathlib import Path

import pytest

from core.settings import config_file, decoder, environment
from core.settings.config import SETTINGS

ENABLED = SETTINGS["modules.enabled"]


@pytest.mark.parametrize(
    ("text", "variable", "value"),
    [
        ("", None, "openapi"),
        ("modules: {enabled: archive}", None, "archive"),
        ("modules.enabled: archive", None, "archive"),
        ("modules.enabled: archive\nmodules: {enabled: text}", None, "text"),
        ("modules: {enabled: archive}\nmodules: {enabled: text}", None, "archive"),
        ("modules: {enabled: archive, enabled: text}", None, "archive"),
        ("modules: {enabled: [archive]}", None, "openapi"),
        ("modules: {enabled: 1}", None, "openapi"),
        ("modules: {enabled: ~}", None, "openapi"),
        ("modules: archive", None, "openapi"),
        ("[modules]", None, "openapi"),
        ("modules: &self {modules: *self, enabled: archive}", None, "archive"),
        ("modules: {enabled: archive}", "text", "text"),
        ("modules: {enabled: archive}", "a,,b", "archive"),
        ("modules: {enabled: archive}", " ", "archive"),
        ("modules: {enabled: ''}", None, ""),
    ],
)
def test_one_setting_is_found_without_the_others(tmp_path: Path, text: str, variable: str | None, value: str) -> None:
    """A refused value leaves the one of the next lower source; `decode` says the same of it."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    file = config_file.read(str(path))
    variables = environment.read({} if variable is None else {ENABLED.variable: variable})

    assert decoder.find_value(file, variables, ENABLED) == value
    assert decoder.decode(SETTINGS, {}, file, variables).values[ENABLED.key] == value
