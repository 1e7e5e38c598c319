"""Load the configuration: variables, file and keys become one `Loaded`, or one refusal that lists every problem.

1. `environment.read` and `config_file.find` read the variables and the file once, without knowing any setting.
2. `decoder.find_value` looks up `modules.enabled` in them. The sections of the modules complete the core's settings.
3. `decoder.decode` makes the values. Each overrides the one before: default, overlay of MLSDM_ENV, file, variable.
4. `key_file.read` reads the keys that `security.keys_path` names.
5. `contradictions` and `judge` list the problems of values that are valid alone, but not together or not in this
   environment.

Invariants: `load` has no side effects, so that a reload validates everything before it changes anything.
Rejected: CONFIG_PATH in the image in place of PLACES (it would outrank a file that an operator mounts); merging the
files of PLACES (no single file would then show what is in force). Both: docs/design/configuration.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import yaml

from core.access import key_file
from core.access.key_file import KeyFile
from core.access.keys import Keyring
from core.machine.cgroup import Cgroup
from core.settings import config_file, decoder, environment, module_names
from core.settings.config import SETTINGS, WORKERS_MAX, Config
from core.settings.config_file import ConfigFile
from core.settings.environment import Environment, EnvironmentName
from core.settings.setting import Setting, SettingProblem, Value
from core.settings.tree import build_tree, contradictions, settings_of, values_of

# Where a server looks for its file when CONFIG_PATH names none, in this order: the operator's, then the image's. The
# first that exists is used; if it cannot be read, that is a problem, and the second is not tried.
PLACES: Final = ("/etc/mlsdm/config.yaml", "/usr/share/mlsdm/production-ready.yaml")

Sections = Mapping[str, type[msgspec.Struct]]  # by the module's name, which is the name of its section
# None for a module that is left out because it cannot be loaded: nothing is known of its section, so what the operator
# wrote there is neither read nor refused.
FoundSections = Mapping[str, type[msgspec.Struct] | None]
# Returns the sections of all modules that it knows, with those of the enabled modules among them. Raises
# ConfigurationError when an enabled module is unknown; must not raise for an empty tuple.
SectionsOf = Callable[[tuple[str, ...]], FoundSections]
# (module, section, text, work) → what goes wrong when the code in a module's settings runs (it raises, hangs, exits …),
# "" if nothing does. `work` runs that code: checks of settings, and contradictions. The result depends only on section
# and text.
Rehearse = Callable[[str, type[msgspec.Struct], str, Callable[[], object]], str]


class ConfigurationError(Exception):
    """All problems of a configuration: one sentence each in `problems`, one line each in `str()`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration: the core's, the modules', and the keys (which `repr` omits)."""

    config: Config
    sections: Mapping[str, msgspec.Struct]  # by name, those of modules that are not enabled included
    source: str  # path of the file, or "embedded defaults"
    environment: EnvironmentName
    keyring: Keyring = field(repr=False)
    notes: tuple[str, ...]  # sentences for the operator about values that are valid but may surprise

    def values(self) -> dict[str, Value]:
        """Return all values by dotted key, those of the core first."""
        values = values_of(self.config)
        for name, section in self.sections.items():
            values |= values_of(section, f"{name}.")
        return values


def no_sections(_enabled: tuple[str, ...]) -> FoundSections:
    """Return no sections: the settings are those of the core."""
    return {}


def no_rehearsal(_name: str, _section: type[msgspec.Struct], _text: str, _work: Callable[[], object]) -> str:
    """Return "", without a rehearsal: trust the code of every section."""
    return ""


def load(
    path: str | None,
    environ: Mapping[str, str],
    places: Sequence[str] = (),
    sections_of: SectionsOf = no_sections,
    rehearse: Rehearse = no_rehearsal,
) -> Loaded:
    """Return the configuration of `environ` and of one file.

    The file is `path`; if that is None, CONFIG_PATH; if that is unset, the first of `places` that exists; else none.
    Reads that file and the keys file. Raises ConfigurationError with all problems.
    """
    loaded, problems = _read(path, environ, places, sections_of, rehearse)
    if problems:
        raise ConfigurationError([problem.sentence for problem in problems])
    return loaded


def reload(
    old: Loaded,
    environ: Mapping[str, str],
    places: Sequence[str] = (),
    sections_of: SectionsOf = no_sections,
    rehearse: Rehearse = no_rehearsal,
) -> Loaded:
    """Return what `load` returns, for a server that runs with `old`.

    Raises ConfigurationError with all problems, those of settings that need a restart to change among them, and the
    loss of every key: a file that a full disk has emptied is valid, and would open the server to everybody.
    """
    loaded, problems = _read(None, environ, places, sections_of, rehearse)
    sentences = [problem.sentence for problem in problems]
    faulty = {problem.key for problem in problems}
    sentences += [sentence for key, sentence in unreloadable(old.values(), loaded).items() if key not in faulty]
    if not old.keyring.is_open:
        sentences += opened(loaded)
    if sentences:
        raise ConfigurationError(sentences)
    return loaded


def opened(loaded: Loaded) -> list[str]:
    """Return the problem that a configuration without any key is for a running server that has keys."""
    return [_OPENED] if loaded.keyring.is_open and not loaded.config.security.keys_path else []


def _read(
    path: str | None,
    environ: Mapping[str, str],
    places: Sequence[str],
    sections_of: SectionsOf,
    rehearse: Rehearse,
) -> tuple[Loaded, list[SettingProblem]]:
    """Return the configuration and what is wrong with it. Where a value is wrong, that of a lower source stands in."""
    variables = environment.read(environ)
    file = config_file.find(path, variables.config_path, places)
    enabled = decoder.find_value(file, variables, SETTINGS[_ENABLED])
    found, module_problems = _find_sections(module_names.parse(str(enabled)), sections_of)
    sections = {name: section for name, section in found.items() if section is not None}
    for name, section in [*sections.items()]:
        if reason := _fault_of(name, section, file, variables, rehearse):
            sentence = f"{name}: the settings of this module cannot be read: {reason}"
            module_problems.append(SettingProblem(name, sentence))
            del sections[name]
    settings = all_settings(sections)
    values, problems = decoder.decode(settings, OVERLAYS[variables.name], file, variables)
    left_out = [name for name in found if name not in sections]
    problems = [problem for problem in problems if not any(_is_in(problem.key, name) for name in left_out)]
    problems += module_problems
    faulty = {problem.key for problem in problems}
    config = build_tree(Config, values)
    problems += contradictions(config, "", faulty)
    modules = {name: build_tree(section, values, f"{name}.") for name, section in sections.items()}
    for name, module in modules.items():
        problems += contradictions(module, f"{name}.", faulty)
    keys_path = config.security.keys_path
    keys = key_file.read(keys_path, variables.api_key) if keys_path else KeyFile([], [])
    problems += keys.problems
    problems += judge(config, variables, faulty)
    notes = (f"{_SHORT}; production would refuse it",) if _is_short(variables.api_key) else ()
    keyring = Keyring(variables.api_key, keys.keys, config.security.api_key_tier)
    return Loaded(config, modules, file.path, variables.name, keyring, notes), problems


def _fault_of(
    name: str, section: type[msgspec.Struct], file: ConfigFile, variables: Environment, rehearse: Rehearse
) -> str:
    """Return what goes wrong when the code in the settings of a module runs, "" if nothing does (see `Rehearse`)."""
    settings = all_settings({name: section})

    def read() -> None:
        values, problems = decoder.decode(settings, OVERLAYS[variables.name], file, variables)
        contradictions(build_tree(section, values, f"{name}."), f"{name}.", {problem.key for problem in problems})

    given = {key: [*map(_given, config_file.find_nodes(file.root, key))] for key in settings if _is_in(key, name)}
    texts = {variable: text for variable, text in variables.texts.items() if _is_in(variable, name)}
    return rehearse(name, section, f"{given} {texts}", read)


def _given(node: yaml.Node) -> tuple[object, ...]:
    """Return what determines the value that is read from a node."""
    return (node.tag, node.style, node.value) if isinstance(node, yaml.ScalarNode) else (node.tag,)


def judge(config: Config, variables: Environment, faulty: set[str]) -> Iterator[SettingProblem]:
    """Yield what is wrong with valid values where the server runs.

    `faulty` has the keys whose values were refused; `config` has the value of the next lower source in their place.
    """
    if variables.name == "production":
        if _is_short(variables.api_key):
            yield SettingProblem("API_KEY", f"{_SHORT}, because MLSDM_ENV is production")
        elif not variables.api_key and not config.security.keys_path and key_file.KEYS_PATH not in faulty:
            yield SettingProblem("API_KEY", _KEYLESS)
    if config.observability.tracing.enabled and _TRACING not in faulty and not _has_opentelemetry():
        yield SettingProblem(_TRACING, f"{_TRACING} is true: expected OpenTelemetry: {_EXTRA}")


def enabled_modules(path: str | None, environ: Mapping[str, str], places: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names in `modules.enabled`, whatever else is wrong with the configuration."""
    variables = environment.read(environ)
    file = config_file.find(path, variables.config_path, places)
    return module_names.parse(str(decoder.find_value(file, variables, SETTINGS[_ENABLED])))


def all_settings(sections: Sections) -> dict[str, Setting]:
    """Return the settings of the core, then those of `sections`, by dotted key."""
    settings = dict(SETTINGS)
    for name, section in sections.items():
        settings |= {setting.key: setting for setting in settings_of(section, f"{name}.")}
    return settings


def default_config(name: EnvironmentName) -> Config:
    """Return the embedded defaults under the overlay of `name`."""
    return build_tree(Config, {key: setting.default for key, setting in SETTINGS.items()} | dict(OVERLAYS[name]))


def unreloadable(was: Mapping[str, Value], new: Loaded) -> dict[str, str]:
    """Return a sentence for each setting that differs and needs a restart to change, by key.

    `was` are the values in force by key. Settings that are not among them are taken to be the same.
    """
    settings = all_settings({name: type(section) for name, section in new.sections.items()})
    wanted = new.values()
    return {
        key: f"{key} cannot change from {was[key]} to {wanted[key]} while the server runs, "
        f"because {setting.restart_reason}: restart it"
        for key, setting in settings.items()
        if setting.restart_reason and key in was and was[key] != wanted[key]
    }


def worker_count(config: Config, root: Path = Path("/")) -> int:
    """Return the number of workers to run: `server.workers`, or one per core of the container when that is 0."""
    return config.server.workers or min(Cgroup(root).usable_cores(), WORKERS_MAX)


def too_many_workers(config: Config, rows: int) -> list[str]:
    """Return the problem of a reload whose old and new workers need more than the `rows` of the block, if any."""
    workers = worker_count(config)
    if 2 * workers <= rows:
        return []
    return [f"server.workers: {workers} old and {workers} new ones need more than {rows} worker rows: restart it"]


def _is_in(key: str, section: str) -> bool:
    """Return whether a dotted key, or the name of a variable, belongs to a section."""
    return key == section or key.startswith((f"{section}.", f"MLSDM_{section.upper()}__"))


def _find_sections(enabled: tuple[str, ...], sections_of: SectionsOf) -> tuple[FoundSections, list[SettingProblem]]:
    """Return the sections of modules, without those whose names belong to the core, and what is wrong with them."""
    problems = []
    try:
        sections = sections_of(enabled)
    except ConfigurationError as error:
        problems += [SettingProblem(_ENABLED, sentence) for sentence in error.problems]
        sections = sections_of(())
    for name in sections:
        if name in Config.__struct_fields__:
            sentence = f"the module {name} has the name of a section of the core: expected a module with another name"
            problems.append(SettingProblem(name, sentence))
    return {name: section for name, section in sections.items() if name not in Config.__struct_fields__}, problems


def _is_short(api_key: str | None) -> bool:
    return api_key is not None and len(api_key) < API_KEY_LENGTH_MIN


def _has_opentelemetry() -> bool:
    """Return whether the packages of the extra `otel` are installed. Imports only their outermost packages."""
    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


_ENABLED: Final = "modules.enabled"
_TRACING: Final = "observability.tracing.enabled"
_EXTRA: Final = "pip install '.[otel]' in a clone of mlsdm"
_KEYLESS: Final = (
    f"API_KEY is not set: expected a secret key, because MLSDM_ENV is production and {key_file.KEYS_PATH} names no file"
)
_OPENED: Final = (
    f"{key_file.KEYS_PATH} is empty: expected the path of a YAML file of keys, because the running server has keys and "
    "without any is open to everybody: restart it"
)
# Characters. API_KEY can be guessed as fast as the network allows, and there is no lock-out. Twelve random letters and
# digits have 62^12 = 3e21 values: at a million guesses a second, half of them take fifty million years; half of those
# with eight characters take three and a half. Keys of the file need no minimum, because `mlsdm key` makes them.
API_KEY_LENGTH_MIN: Final = 12
_SHORT: Final = f"API_KEY is too short: expected at least {API_KEY_LENGTH_MIN} characters"

# Differences from the development defaults. Staging rehearses production, without the required key and the rate limits.
# drain_period: new connections arrive after SIGTERM until the last load balancer has noticed. Kubernetes propagates the
# removal of an endpoint in one to a few seconds; 5 s of its default grace of 30 s cover that. In development there is
# no load balancer and Ctrl-C should end the server at once: 0.
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
