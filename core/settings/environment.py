"""The environment variables: name of the environment, API_KEY, path of the file, and overrides of single settings.

Three kinds, of rising precedence: `MLSDM_<SECTION>__<KEY>` for every setting; the plain names that operators know
(`LOG_LEVEL`, `HOST`, `PORT`, `WORKERS`, `DISABLE_RATE_LIMIT`); and `MLSDM_ENV`, `CONFIG_PATH` and `API_KEY`, which are
no settings.

Any other name that begins with `MLSDM_` is refused, because a misspelt override that is ignored is found too late.
Exception: the service links that Kubernetes injects for a service called mlsdm-api (`MLSDM_API_SERVICE_HOST`,
`MLSDM_API_PORT_8000_TCP` …). Variables that the program passes to itself across an exec must not begin with `MLSDM_`.

A variable that is set but empty is refused, because it is more often a lost value than an intention: an empty MLSDM_ENV
would turn production into development, and an empty MLSDM_SECURITY__KEYS_PATH would open a server that had keys. Only
`API_KEY` may be blank, and then counts as unset. It is stripped of whitespace, because a secret made with `echo` ends
in a newline that no header can carry. It is the only secret here, and no problem shows it.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from core.settings.setting import Layer, Setting, SettingProblem, quote_if_needed, quoted, suggestion

EnvironmentName = Literal["development", "staging", "production"]

NAMES: Final[Mapping[str, EnvironmentName]] = {
    "dev": "development",
    "development": "development",
    "staging": "staging",
    "production": "production",
}
# Plain variable → the setting it overrides.
PLAIN: Final[Mapping[str, str]] = {
    "HOST": "server.host",
    "PORT": "server.port",
    "WORKERS": "server.workers",
    "LOG_LEVEL": "observability.logging.level",
}
_DISABLE_RATE_LIMIT: Final = "DISABLE_RATE_LIMIT"
_RATE_LIMIT: Final = "security.rate_limiting.enabled"
_BARE_NAMES: Final = frozenset((*PLAIN, _DISABLE_RATE_LIMIT, "API_KEY", "CONFIG_PATH"))
_SERVICE_LINKS: Final = ("MLSDM_API_SERVICE_", "MLSDM_API_PORT")


class Environment(NamedTuple):
    """The variables. `problems` are those of MLSDM_ENV, API_KEY and CONFIG_PATH; `name` is then a stand-in."""

    name: EnvironmentName
    api_key: str | None
    config_path: str | None
    variables: Mapping[str, str]
    problems: tuple[SettingProblem, ...]

    def __repr__(self) -> str:
        return f"Environment(name={self.name!r}, api_key={'set' if self.api_key else 'unset'})"


def read(variables: Mapping[str, str]) -> Environment:
    """Return what the variables say about everything but settings. Never raises."""
    layer = Layer({}, [])
    name = _read_name(variables, layer)
    api_key, config_path = _read_api_key(variables, layer), _read_config_path(variables, layer)
    return Environment(name, api_key, config_path, variables, tuple(layer.problems))


def find_values(variables: Mapping[str, str], settings: Mapping[str, Setting]) -> Layer:
    """Return the values that the variables give `settings` (by dotted key), and the problems of their names and values.

    Never raises.
    """
    layer = Layer({}, [])
    _read_overrides(variables, settings, layer)
    _read_plain(variables, settings, layer)
    return layer


def _read_name(variables: Mapping[str, str], layer: Layer) -> EnvironmentName:
    given = variables.get("MLSDM_ENV", "development")
    if known := NAMES.get(given.strip().lower()):
        return known
    layer.report(
        "MLSDM_ENV", f"MLSDM_ENV is {quoted(given)}: expected one of {', '.join(NAMES)}{suggestion(given, NAMES)}"
    )
    return "development"


def _read_overrides(variables: Mapping[str, str], settings: Mapping[str, Setting], layer: Layer) -> None:
    by_variable = {setting.variable: setting for setting in settings.values()}
    for variable in sorted(variables):
        if variable in by_variable:
            setting, text = by_variable[variable], variables[variable]
            if text.strip():
                layer.parse(setting, text, variable)
            else:
                layer.reject(setting, "is empty", variable)
        elif variable.startswith("MLSDM_") and variable != "MLSDM_ENV" and not variable.startswith(_SERVICE_LINKS):
            bare = variable.removeprefix("MLSDM_")
            hint = f"; did you mean {bare}?" if bare in _BARE_NAMES else suggestion(variable, by_variable, "__")
            layer.report(variable, f"{quote_if_needed(variable)} is unknown: expected MLSDM_<SECTION>__<KEY>{hint}")


def _read_plain(variables: Mapping[str, str], settings: Mapping[str, Setting], layer: Layer) -> None:
    for variable, key in PLAIN.items():
        if variable in variables and key in settings:
            layer.parse(settings[key], variables[variable], variable)
    if _DISABLE_RATE_LIMIT not in variables or _RATE_LIMIT not in settings:
        return
    # 0 does not enable the limits; it leaves them as configured.
    switch = Layer({}, [])
    switch.parse(settings[_RATE_LIMIT], variables[_DISABLE_RATE_LIMIT], _DISABLE_RATE_LIMIT)
    if switch.values.get(_RATE_LIMIT):
        layer.values[_RATE_LIMIT] = False
    layer.problems.extend(switch.problems)


def _read_api_key(variables: Mapping[str, str], layer: Layer) -> str | None:
    api_key = variables.get("API_KEY", "").strip()
    # RFC 9110 §5.5: a field value is visible ASCII, and a space would end the token.
    if not all("!" <= character <= "~" for character in api_key):
        layer.report(
            "API_KEY", "API_KEY has a character that no header can carry: expected visible ASCII without spaces"
        )
    return api_key or None


def _read_config_path(variables: Mapping[str, str], layer: Layer) -> str | None:
    path = variables.get("CONFIG_PATH")
    if path is not None and not path.strip():
        layer.report(
            "CONFIG_PATH", "CONFIG_PATH is empty: expected the path of a YAML file, or unset it for the defaults"
        )
        return None
    return path
