"""The sources of the configuration: defaults, overlay, file and environment, put together into one that can be used.

`load` has no side effect and reads nothing but its arguments and the files they name, so that a reload can validate
everything before it touches anything. It either returns a whole, consistent configuration or raises one
`ConfigurationError` that lists every problem of every source; there is no partly applied state. Sources, each
overriding the one before: the embedded defaults, the overlay of `MLSDM_ENV`, the file (`core.settings.config_file`),
`MLSDM_*` variables, plain variables (`core.settings.environment`). What a setting may be is said by the tree
(`core.settings.config`).

Where no file is named, a server looks in PLACES, as systemd does: the operator's file in /etc, then the one that came
with the software in /usr/share, which is how the container image brings its own. The first that is there is the file;
one that is there and cannot be read is a problem, not a reason to look further. Rejected: the same through CONFIG_PATH
in the image, which would then outrank what an operator mounts; and a merge of both, where nobody could say from one
file what holds.

Keys come with the configuration, in a `Keyring`: the one of `API_KEY`, and those of the file that
`security.keys_path` names (`core.access.key_file`). Whether there must be one, and how long `API_KEY` must be, depends
on where the service runs, and is judged here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from core.access import key_file
from core.access.key_file import Keys
from core.access.keys import Keyring
from core.machine.cgroup import Cgroup
from core.settings import config_file, environment
from core.settings.config import SETTINGS, WORKERS_MAX, Config, build_config, contradictions, values_of
from core.settings.environment import EnvironmentName
from core.settings.setting import Layer, SettingProblem, Value

# Where a server looks for its file when CONFIG_PATH names none, in this order.
PLACES: Final = ("/etc/mlsdm/config.yaml", "/usr/share/mlsdm/production-ready.yaml")


class ConfigurationError(Exception):
    """Everything that is wrong with a configuration. `str()` is one problem per line, as is `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, where it came from, and the keys that go with it (which `repr` leaves out)."""

    config: Config
    source: str  # the file's path, or "embedded defaults"
    environment: EnvironmentName
    keyring: Keyring = field(repr=False)
    notes: tuple[str, ...]  # what is no problem here and should be said


def load(path: str | None, environ: Mapping[str, str], places: Sequence[str] = ()) -> Loaded:
    """Return the configuration of `environ` and of the file at `path`; when that is None, at CONFIG_PATH; when that is
    unset, of the first file that is there among `places`; else without a file.

    Reads that file and the keys file that is configured, and nothing else. Raises ConfigurationError, which lists all
    problems at once.
    """
    variables = environment.read(environ, SETTINGS)
    if path is None:
        path = variables.config_path
    if path is None and "CONFIG_PATH" not in environ:  # an empty one is a problem already
        path = next(filter(_is_there, places), None)
    file = Layer({}, []) if path is None else config_file.read(path, SETTINGS)
    values = _defaults(variables.name) | file.values | variables.layer.values
    problems = [*file.problems, *variables.layer.problems]
    faulty = {problem.key for problem in problems}
    problems += contradictions(values, faulty)
    keys_path = str(values[key_file.SETTING])
    keys = key_file.read(keys_path, variables.api_key) if keys_path else Keys([], [])
    problems += keys.problems
    is_short = variables.api_key is not None and len(variables.api_key) < API_KEY_LENGTH_MIN
    if variables.name == "production":
        if is_short:
            problems.append(SettingProblem("API_KEY", f"{_SHORT}, because MLSDM_ENV is production"))
        elif not variables.api_key and not keys_path and key_file.SETTING not in faulty:
            problems.append(SettingProblem("API_KEY", _KEYLESS))
    if values[_TRACING] is True and _TRACING not in faulty and not _has_opentelemetry():
        problems.append(SettingProblem(_TRACING, f"{_TRACING} is true: expected OpenTelemetry: {_EXTRA}"))
    if problems:
        raise ConfigurationError([problem.sentence for problem in problems])
    keyring = Keyring(variables.api_key, keys.keys)
    notes = (f"{_SHORT}; production would refuse it",) if is_short else ()
    return Loaded(build_config(values), path or "embedded defaults", variables.name, keyring, notes)


def _is_there(path: str) -> bool:
    """Return whether something has that name: also a link that leads nowhere, and what may not be looked at."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def defaults(name: EnvironmentName) -> Config:
    """Return the embedded defaults under the overlay of `name`."""
    return build_config(_defaults(name))


def worker_count(config: Config, root: Path = Path("/")) -> int:
    """Return how many workers to run: `server.workers`, or when that is 0 one per core of the container."""
    return config.server.workers or min(Cgroup(root).usable_cores(), WORKERS_MAX)


def _defaults(name: EnvironmentName) -> dict[str, Value]:
    return {**{key: setting.default for key, setting in SETTINGS.items()}, **OVERLAYS[name]}


def unreloadable(old: Config, new: Config) -> list[str]:
    """Return a sentence for each setting that differs and that only a restart can change; [] when a reload will do."""
    was, wanted = values_of(old), values_of(new)
    return [
        f"{key} cannot change from {was[key]} to {wanted[key]} while the service runs, because {reason}: restart it"
        for key, reason in RESTART_REASONS.items()
        if was[key] != wanted[key]
    ]


def _has_opentelemetry() -> bool:
    """Return whether what the extra `otel` installs is there. Nothing of it is imported but its outermost packages."""
    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


_TRACING: Final = "observability.tracing.enabled"
_EXTRA: Final = "pip install 'mlsdm[otel]'"
_KEYLESS: Final = (
    f"API_KEY is not set: expected a secret key, because MLSDM_ENV is production and {key_file.SETTING} names no file"
)
# Characters. API_KEY is compared as often as a network allows, without a lock-out. Of twelve letters and digits made by
# chance there are 62^12, or 3e21: at a million tries a second, fifty million years for half of them; of eight, three
# and a half. Those of the keys file need no such bound, because `mlsdm key` makes them.
API_KEY_LENGTH_MIN: Final = 12
_SHORT: Final = f"API_KEY is too short: expected at least {API_KEY_LENGTH_MIN} characters"

# What differs from the development default. Staging rehearses production, except that it neither asks for a key nor
# limits rates. drain_period: between SIGTERM and the last load balancer's noticing, new connections still arrive;
# Kubernetes propagates an endpoint's removal in one to a few seconds, and 5 s of the customary 30 s of grace cover
# it. On a desk nobody balances load, and Ctrl-C should end at once: 0.
OVERLAYS: Final[Mapping[EnvironmentName, Mapping[str, Value]]] = {
    "development": {},
    "staging": {"observability.logging.format": "json", "resources.drain_period": 5.0},
    "production": {
        "observability.logging.format": "json",
        "observability.tracing.sample_ratio": 0.01,
        "resources.drain_period": 5.0,
        "security.rate_limiting.enabled": True,
    },
}
# Settings that a reload cannot change, and why. A larger block would be a new, empty one; the listening socket is
# opened once.
RESTART_REASONS: Final = {
    "dimension": "it lays out the shared block",
    "capacity": "it lays out the shared block",
    "payload_size_max": "it lays out the shared block",
    "log_capacity": "it lays out the shared block",
    "idempotency_capacity": "it lays out the shared block",
    "server.host": "the socket is already open",
    "server.port": "the socket is already open",
}
