"""The environment variables: read once into texts, which `core.settings.decoder` turns into values.

There are three kinds, in rising precedence: `MLSDM_<SECTION>__<KEY>` for every setting; the plain names that operators
know (`LOG_LEVEL`, `HOST`, `PORT`, `WORKERS`, `DISABLE_RATE_LIMIT`); and `MLSDM_ENV`, `CONFIG_PATH` and `API_KEY`, which
are not settings. Any other name that begins with `MLSDM_` is refused, because a misspelt override that is ignored is
found too late. Exception: the service links that Kubernetes injects for a service called mlsdm-api
(`MLSDM_API_SERVICE_HOST`, `MLSDM_API_PORT_8000_TCP` …). Variables that the program passes to itself across an exec must
not begin with `MLSDM_`.

A variable that is set but empty is refused, because most often its value was lost: an empty MLSDM_ENV would turn
production into development, and an empty MLSDM_SECURITY__KEYS_PATH would open a server that had keys. Only `API_KEY`
may be blank, and then counts as unset. It is stripped of whitespace, because a secret made with `echo` ends in a
newline that no header can carry. It is the only secret here, and no problem shows it.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from core.settings.setting import SettingProblem, quoted, suggestion

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
# Can only turn the switch off: 0 leaves the switch as it is configured.
DISABLE_RATE_LIMIT: Final = "DISABLE_RATE_LIMIT"
RATE_LIMIT: Final = "security.rate_limiting.enabled"
BARE_NAMES: Final = frozenset((*PLAIN, DISABLE_RATE_LIMIT, "API_KEY", "CONFIG_PATH"))
SERVICE_LINKS: Final = ("MLSDM_API_SERVICE_", "MLSDM_API_PORT")


class Environment(NamedTuple):
    """The variables. `problems` are those of MLSDM_ENV, API_KEY and CONFIG_PATH; `name` is then `development`."""

    name: EnvironmentName
    api_key: str | None
    config_path: str | None  # "" when CONFIG_PATH is blank
    texts: Mapping[str, str]  # by variable: those that may set something, in rising precedence
    problems: tuple[SettingProblem, ...]

    def __repr__(self) -> str:
        return f"Environment(name={self.name!r}, api_key={'set' if self.api_key else 'unset'})"


def read(variables: Mapping[str, str]) -> Environment:
    """Return the contents of the variables. Never raises."""
    problems: list[SettingProblem] = []
    name = variables.get("MLSDM_ENV", "development")
    if name.strip().lower() not in NAMES:
        expected = f"expected one of {', '.join(NAMES)}{suggestion(name, NAMES)}"
        problems.append(SettingProblem("MLSDM_ENV", f"MLSDM_ENV is {quoted(name)}: {expected}"))
    api_key = variables.get("API_KEY", "").strip()
    # RFC 9110 §5.5: a field value is visible ASCII, and a space would end the token.
    if not all("!" <= character <= "~" for character in api_key):
        problems.append(SettingProblem("API_KEY", _NOT_ASCII))
    config_path = variables.get("CONFIG_PATH")
    if config_path is not None and not config_path.strip():
        problems.append(SettingProblem("CONFIG_PATH", _NO_PATH))
        config_path = ""
    prefixed = [variable for variable in sorted(variables) if variable.startswith("MLSDM_") and variable != "MLSDM_ENV"]
    plain = [variable for variable in (*PLAIN, DISABLE_RATE_LIMIT) if variable in variables]
    return Environment(
        NAMES.get(name.strip().lower(), "development"),
        api_key or None,
        config_path,
        {variable: variables[variable] for variable in (*prefixed, *plain)},
        tuple(problems),
    )


_NOT_ASCII: Final = "API_KEY has a character that no header can carry: expected visible ASCII without spaces"
_NO_PATH: Final = "CONFIG_PATH is empty: expected the path of a YAML file, or unset it for the defaults"
