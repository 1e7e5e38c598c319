"""The decoder: turns the texts of the file and the variables into values, and reports every text without a valid value.

`decode` goes through both in order of precedence. It follows the known settings, which are at most five levels deep,
never the structure of the document. Each text of either source goes through `Setting.parse`.

Refused, each with its place: an unknown key, a key given twice, a section in place of a value and the reverse, a value
outside its range, and a key without a value (`capacity:`, `PORT=`), because a lost value must not pass for a default.
An empty file and an empty section are valid and set nothing; `keys_path: ""` in a file sets a text.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import yaml

from core.settings import yaml_document
from core.settings.config_file import ConfigFile, find_nodes
from core.settings.environment import BARE_NAMES, DISABLE_RATE_LIMIT, PLAIN, RATE_LIMIT, SERVICE_LINKS, Environment
from core.settings.setting import InvalidText, Setting, SettingProblem, Value, quote_if_needed, quoted, suggestion


class Decoded(NamedTuple):
    """A value for each setting, by dotted key, and the problems of both sources.

    In place of a value that is refused, `values` has the one of the next lower source.
    """

    values: dict[str, Value]
    problems: list[SettingProblem]


def decode(
    settings: Mapping[str, Setting], overlay: Mapping[str, Value], file: ConfigFile, variables: Environment
) -> Decoded:
    """Return the values of `settings` (by dotted key): defaults, overlay, file, variables; the later one overrides."""
    values = {key: setting.default for key, setting in settings.items()} | dict(overlay)
    decoder = _Decoder(settings, values, [*file.problems])
    if file.root is not None:
        decoder.decode_section(file.root, "", file.path)
    decoder.problems.extend(variables.problems)
    decoder.decode_variables(variables.texts)
    return Decoded(decoder.values, decoder.problems)


def find_value(file: ConfigFile, variables: Environment, setting: Setting) -> Value:
    """Return what `decode` returns for one setting, without knowing the others.

    The setting has the same default in every environment and no plain variable.
    """
    value = setting.default
    given: list[yaml.Node | str] = [*find_nodes(file.root, setting.key)]
    if setting.variable in variables.texts:
        given.append(variables.texts[setting.variable])
    for text in given:
        with suppress(InvalidText):
            value = decode_value(setting, text)
    return value


def decode_value(setting: Setting, given: yaml.Node | str) -> Value:
    """Return the value of a node of the file, or of the text of a variable.

    Raises InvalidText with the finding that follows the key.
    """
    text = given if isinstance(given, str) else _text_of(given, setting.type not in (bool, int, float))
    if isinstance(given, str) and not text.strip():
        raise InvalidText("is empty")
    try:
        return setting.parse(text)
    except InvalidText:
        raise
    except ValueError as error:
        raise InvalidText(f"is {quote_if_needed(text)}" if text.strip() else "is empty") from error


def _text_of(node: yaml.Node, wants_text: bool) -> str:
    """Return the text of a node.

    Raises InvalidText for a number or switch in quotes, and for an unquoted value of another kind where text is wanted.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise InvalidText(f"is {_kind(node)}")
    if yaml_document.is_null(node):
        raise InvalidText("is empty")
    if wants_text and node.tag != yaml_document.TEXT:
        raise InvalidText(f"is {quote_if_needed(node.value)}, which is not text")
    if not wants_text and node.style is not None:
        raise InvalidText(f"is the text {quoted(node.value)}")
    text: str = node.value
    return text


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return quote_if_needed(node.value)


class _Decoder:
    """Goes through the sources one after the other; the later one overrides."""

    def __init__(
        self, settings: Mapping[str, Setting], values: dict[str, Value], problems: list[SettingProblem]
    ) -> None:
        self.values = values
        self.problems = problems
        self._settings = settings

    def decode_section(self, node: yaml.Node, section: str, path: str) -> None:
        """Decode every setting below `section` ("" or "server.") from `node`."""
        if yaml_document.is_null(node):
            return
        origin = yaml_document.origin(path, node)
        name = section.rstrip(".") or "the file"
        children = sorted({key[len(section) :].split(".", 1)[0] for key in self._settings if key.startswith(section)})
        if not isinstance(node, yaml.MappingNode):
            self._report(name, f"{name} is {_kind(node)} ({origin}): expected a section with {', '.join(children)}")
            return
        seen: dict[str, str] = {}
        for key_node, value_node in node.value:
            origin = yaml_document.origin(path, key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(name, f"{name} has {_kind(key_node)} for a key ({origin}): expected a name")
                continue
            key = section + key_node.value
            if key in seen:
                self._report(key, f"{quote_if_needed(key)} is given twice ({seen[key]} and {origin}): expected once")
                continue
            seen[key] = origin
            if key in self._settings:
                self._decode_setting(self._settings[key], value_node, origin)
            elif key_node.value in children:
                self.decode_section(value_node, f"{key}.", path)
            else:
                expected = f"expected one of {', '.join(children)}{suggestion(key, self._settings)}"
                self._report(key, f"{quote_if_needed(key)} is unknown ({origin}): {expected}")

    def decode_variables(self, texts: Mapping[str, str]) -> None:
        """Decode `texts` (by variable) in their order."""
        prefixed = {setting.variable: setting for setting in self._settings.values()}
        plain = {variable: self._settings[key] for variable, key in PLAIN.items()}
        by_variable = prefixed | plain | {DISABLE_RATE_LIMIT: self._settings[RATE_LIMIT]}
        for variable, text in texts.items():
            if variable in by_variable:
                self._decode_setting(by_variable[variable], text, variable)
            elif not variable.startswith(SERVICE_LINKS):
                bare = variable.removeprefix("MLSDM_")
                hint = f"; did you mean {bare}?" if bare in BARE_NAMES else suggestion(variable, prefixed, "__")
                self._report(variable, f"{quote_if_needed(variable)} is unknown: expected MLSDM_<SECTION>__<KEY>{hint}")

    def _decode_setting(self, setting: Setting, given: yaml.Node | str, origin: str) -> None:
        """Set the value of `given`, or report why it has none. `origin` is its file and line, or its variable."""
        try:
            value = decode_value(setting, given)
        except InvalidText as finding:
            expected = f"expected {setting.range} (unit: {setting.unit})"
            self._report(setting.key, f"{setting.key} {finding} ({origin}): {expected}")
            return
        if origin != DISABLE_RATE_LIMIT:
            self.values[setting.key] = value
        elif value:
            self.values[setting.key] = False

    def _report(self, key: str, sentence: str) -> None:
        """Add a problem of a key, which need not be a setting."""
        self.problems.append(SettingProblem(key, sentence))
