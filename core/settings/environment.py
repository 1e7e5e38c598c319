"""The environment variables: the deployment's name, the key, the file's place, and overrides of single settings.

Three kinds, of rising precedence: `MLSDM_<SECTION>__<KEY>` for every setting; the plain names that operators have in
their fingers (`LOG_LEVEL`, `HOST`, `PORT`, `WORKERS`, `DISABLE_RATE_LIMIT`); and, beside the settings, `MLSDM_ENV`,
`CONFIG_PATH` and `API_KEY`.

Every other name that begins with `MLSDM_` is refused, because a misspelt override that is silently ignored is found
only when it matters. The exception is what Kubernetes injects for a service called mlsdm-api (service links:
`MLSDM_API_SERVICE_HOST`, `MLSDM_API_PORT_8000_TCP` …). What the program tells itself across an exec must therefore
not begin with `MLSDM_`.

A variable that is set but empty is refused, for it is more often a lost value than a wish: an empty `MLSDM_ENV` would
turn production into development without a word, and an empty `MLSDM_SECURITY__KEYS_PATH` a closed server into an
open one. (A file may say `keys_path: ""`, where it can be seen.) `API_KEY` alone may be empty or blank, and is then as
unset; whether that is allowed depends on more than the environment, and `core.startup` judges it.

The key is the only secret. It is stripped of surrounding whitespace, because a secret made with `echo` ends in a
newline that no header can carry, and it never appears in a problem.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from core.settings.setting import Layer, Setting, quote_if_needed, quoted, suggestion

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
    """What the variables say. `layer` holds the overrides, plain names already winning, and every problem."""

    name: EnvironmentName
    api_key: str | None
    config_path: str | None
    layer: Layer

    def __repr__(self) -> str:
        return f"Environment(name={self.name!r}, api_key={'set' if self.api_key else 'unset'})"


def read(environ: Mapping[str, str], settings: Mapping[str, Setting]) -> Environment:
    """Return what `environ` says about `settings` (by dotted key). Problems are reported in the layer, never raised."""
    layer = Layer({}, [])
    name = _read_name(environ, layer)
    _read_overrides(environ, settings, layer)
    _read_plain(environ, settings, layer)
    return Environment(name, _read_api_key(environ, layer), _read_config_path(environ, layer), layer)


def _read_name(environ: Mapping[str, str], layer: Layer) -> EnvironmentName:
    given = environ.get("MLSDM_ENV", "development")
    if known := NAMES.get(given.strip().lower()):
        return known
    layer.report(
        "MLSDM_ENV", f"MLSDM_ENV is {quoted(given)}: expected one of {', '.join(NAMES)}{suggestion(given, NAMES)}"
    )
    return "development"


def _read_overrides(environ: Mapping[str, str], settings: Mapping[str, Setting], layer: Layer) -> None:
    by_variable = {setting.variable: setting for setting in settings.values()}
    for variable in sorted(environ):
        if variable in by_variable:
            setting, text = by_variable[variable], environ[variable]
            if text.strip():
                layer.parse(setting, text, variable)
            else:
                layer.reject(setting, "is empty", variable)
        elif variable.startswith("MLSDM_") and variable != "MLSDM_ENV" and not variable.startswith(_SERVICE_LINKS):
            bare = variable.removeprefix("MLSDM_")
            hint = f"; did you mean {bare}?" if bare in _BARE_NAMES else suggestion(variable, by_variable, "__")
            layer.report(variable, f"{quote_if_needed(variable)} is unknown: expected MLSDM_<SECTION>__<KEY>{hint}")


def _read_plain(environ: Mapping[str, str], settings: Mapping[str, Setting], layer: Layer) -> None:
    for variable, key in PLAIN.items():
        if variable in environ:
            layer.parse(settings[key], environ[variable], variable)
    if _DISABLE_RATE_LIMIT not in environ:
        return
    # 0 does not switch the limits on: it only declines to switch them off.
    switch = Layer({}, [])
    switch.parse(settings[_RATE_LIMIT], environ[_DISABLE_RATE_LIMIT], _DISABLE_RATE_LIMIT)
    if switch.values.get(_RATE_LIMIT):
        layer.values[_RATE_LIMIT] = False
    layer.problems.extend(switch.problems)


def _read_api_key(environ: Mapping[str, str], layer: Layer) -> str | None:
    api_key = environ.get("API_KEY", "").strip()
    # RFC 9110 §5.5: a field value is visible ASCII, and a space would end the token.
    if not all("!" <= character <= "~" for character in api_key):
        layer.report(
            "API_KEY", "API_KEY has a character that no header can carry: expected visible ASCII without spaces"
        )
    return api_key or None


def _read_config_path(environ: Mapping[str, str], layer: Layer) -> str | None:
    path = environ.get("CONFIG_PATH")
    if path is not None and not path.strip():
        layer.report(
            "CONFIG_PATH", "CONFIG_PATH is empty: expected the path of a YAML file, or unset it for the defaults"
        )
        return None
    return path
