"""The reference of the configuration, rendered from the types: docs/configuration.md and the files in config/.

`sections` are the settings of modules by name; they follow those of the core. `python -m mlsdm.manual` writes the files
and tests compare them, so a range, default or meaning that changes in a type cannot stay outdated elsewhere.
Rejected: files kept by hand with only their ranges checked (the prose drifts).
"""

from collections.abc import Iterator, Mapping
from typing import Final, get_type_hints

import msgspec

from core.access.key_file import KEY_COUNT_MAX, KEY_MEMBERS, to_yaml_entry
from core.settings.config import Config
from core.settings.environment import EnvironmentName
from core.settings.setting import Setting, Value
from core.settings.tree import settings_of, values_of
from core.settings.yaml_document import to_yaml_scalar
from core.startup import API_KEY_LENGTH_MIN, OVERLAYS, PLACES, Sections, default_config

_YAML_HEADERS: Final[Mapping[EnvironmentName, str]] = {
    "development": """\
# mlsdm: the development defaults, every setting with its unit and range.
#
# These values are in force without any file, so a file needs only what it changes. Do not deploy this file: a file
# overrides the overlay of MLSDM_ENV, and this one would switch rate limits off in production. Start from
# production-ready.yaml there. Check a file with `mlsdm check-config PATH`; use it with CONFIG_PATH=PATH.
""",
    "production": """\
# mlsdm: settings for production, every setting with its unit and range.
#
# Run with MLSDM_ENV=production, CONFIG_PATH=<this file>, and API_KEY=<a secret> or a keys file (security.keys_path);
# the server refuses to start without a key. Keep secrets out of this file. It differs from the defaults of
# MLSDM_ENV=production only in server.host. Check it with `mlsdm check-config PATH`.
#
# config.yaml in this directory links to this file, so a container finds it when the directory is mounted at
# /etc/mlsdm.
""",
}
# A container is reached from outside. The embedded default is the loopback interface in every environment, so that a
# port is open to the network only where somebody configured it.
_YAML_CHANGES: Final[Mapping[EnvironmentName, Mapping[str, Value]]] = {
    "development": {},
    "production": {"server.host": "0.0.0.0"},  # noqa: S104  the file for containers, where a key is required
}

_INTRODUCTION = f"""\
# Configuration

<!-- Written by `python -m mlsdm.manual markdown` from the annotated types; a test compares it. -->

Settings come from five sources. Each overrides the ones before it:

1. the defaults below;
2. the overlay of `MLSDM_ENV`: `development` (or `dev`, the default), `staging` or `production`;
3. one YAML file: the one named by `CONFIG_PATH`, which must exist; without `CONFIG_PATH`, the first that exists of
   {", ".join(f"`{place}`" for place in PLACES)};
4. `MLSDM_<SECTION>__<KEY>` variables, such as `MLSDM_CAPACITY=1000` or `MLSDM_MORAL_FILTER__EMA_ALPHA=0.2`;
5. the plain variables below.

Unknown keys, keys given twice, wrong types and values out of range are refused. One message lists all of them, each
with the key, its line or variable, and what was expected. Numbers are decimal (`20000`, `20_000`, `0.1`, `1e-3`);
switches are `true`, `false`, `1` or `0`; names are case-insensitive. In a file, numbers and switches are not quoted. A
key or a variable without a value is refused, because a lost value must not pass for a default. An empty file and an
empty section are valid.

`mlsdm check-config PATH` checks a file, and the keys file that it names, without starting anything.
`config/default.yaml` and `config/production-ready.yaml` list every setting. On `HUP` the server reads both files again.
If they have a problem, a setting marked *restart* differs, or there is no key left, it refuses the change and keeps the
old configuration.

## Variables

| Variable | Meaning |
|---|---|
| `MLSDM_ENV` | `development` (`dev`), `staging` or `production`. |
| `CONFIG_PATH` | Path of the YAML file; without it, the first of the places above. |
| `API_KEY` | A key with role `write` and the tier `security.api_key_tier`, in addition to those of the keys file. |
| `HOST`, `PORT`, `WORKERS` | `server.host`, `server.port`, `server.workers`. |
| `LOG_LEVEL` | `observability.logging.level`. |
| `DISABLE_RATE_LIMIT` | `1` switches `security.rate_limiting.enabled` off; `0` leaves it as configured. |

`API_KEY` is visible ASCII without spaces. Whitespace around it is removed, and a blank key counts as unset. Production
requires at least {API_KEY_LENGTH_MIN} characters; other environments log a note when it is shorter.

`security.api_key_tier` is `bulk` in every environment. `API_KEY` is the one key of the application that the server
belongs to, and there is no other client to be fair to. So its limit only has to stop a program that runs wild: 10,000
events a second is below what one core decides, and a burst of 20,000 accepts the largest batch (1,000 events), which
the tiers `standard` and `high` refuse. Choose a lower tier when the key leaves your own servers, for example for a
public API. Better still, give each client a key of its own in the keys file, with the tier `standard` unless it names
another.

Any other variable whose name begins with `MLSDM_` is refused, except `MLSDM_API_SERVICE_*` and `MLSDM_API_PORT*`, which
Kubernetes injects for a service called `mlsdm-api`. If a service in the cluster has another name that begins with
`mlsdm`, set `enableServiceLinks: false` in the pod.

Some settings are related: `moral_filter.min_threshold` ≤ `moral_filter.initial_threshold` ≤
`moral_filter.max_threshold`, `resources.drain_period` < `resources.shutdown_timeout`, and every module in
`modules.required` must be in `modules.enabled`.

`resources.drain_period` is 5 s in staging and production because new connections arrive after SIGTERM until the last
load balancer has noticed, which takes a few seconds in Kubernetes. It is the first part of
`resources.shutdown_timeout`, which must not exceed the pod's `terminationGracePeriodSeconds` (default 30).
"""


def markdown(sections: Sections) -> str:
    """Return docs/configuration.md."""
    tables = list(_markdown_tree(Config, "", "The block", _BLOCK))
    for name, section in sections.items():
        tables += _markdown_tree(section, f"{name}.", f"`{name}`", str(section.__doc__))
    return _INTRODUCTION + _markdown_keys() + "\n## Settings\n" + "".join(tables)


def yaml_file(environment: EnvironmentName, sections: Sections) -> str:
    """Return the annotated file for `environment`: development or production."""
    values = {**values_of(default_config(environment)), **_YAML_CHANGES[environment]}
    lines = list(_yaml_tree(Config, "", values))
    for name, section in sections.items():
        lines += _yaml_section(section, name, values_of(section(), f"{name}."))
    return _YAML_HEADERS[environment] + "\n" + "\n".join(lines) + "\n"


_MEMBER_DEFAULTS: Final = {"tier": f"`{KEY_MEMBERS['tier'].default}`", "expires": "never"}
# The digest of a token that nobody has, so that a copied example grants no access.
_EXAMPLE: Final = {
    "id": "web",
    "digest": "7c9ce3e8ce3ea398b4155457f78128ce97b3156b5a344172851ed6cfb8113a1a",
    "role": "write",
    "tier": "high",
    "expires": "2027-01-31",
}


def _markdown_keys() -> str:
    rows = "\n".join(
        f"| `{name}` | {member.expected} | {_MEMBER_DEFAULTS.get(name, 'required')} |"
        for name, member in KEY_MEMBERS.items()
    )
    return f"""
## Keys

Clients send a token as `Authorization: Bearer TOKEN` or as `X-API-Key: TOKEN`. The server stores the digest of each
token with a role, a rate tier and optionally an expiry. The roles are `read` < `write` < `admin`; each includes the
permissions of those before it. Tokens come from `API_KEY` and from the file that `security.keys_path` names, relative
to the working directory. Production refuses to start without a key; in other environments a server without keys is
open to every client that can connect.

`mlsdm key` makes a key. It prints the entry for the file to stdout, and the token to stderr, or with `--token PATH` to
a new file that only you can read. The server needs the digest alone, so the token is stored nowhere else:

```console
$ (umask 027; echo keys: > keys.yaml)
$ mlsdm key web --role write --tier high --expires 2027-01-31 >> keys.yaml
```

Then the file is

```yaml
keys:
{to_yaml_entry(_EXAMPLE)}```

| Member | Value | Default |
|---|---|---|
{rows}

A token is `ID.SECRET`, and its digest is the SHA-256 of the whole: `printf %s "$TOKEN" | sha256sum`. A file holds 1 to
{KEY_COUNT_MAX:,} keys. Each id and each digest occurs once, and no digest is that of `API_KEY`. The file must not be
writable by everybody. To revoke a key, delete its entry and send `HUP`. An expired key is refused from that second on,
without `HUP`; it may stay in the file, and `mlsdm check-config` names it.
"""


_BLOCK: Final = "The sizes of the shared memory, at the top level of the file. All of it is allocated at start."


def _markdown_tree(tree: type[msgspec.Struct], prefix: str, title: str, text: str) -> Iterator[str]:
    """Yield the table of a tree's own settings, then those of its sections."""
    own = [setting for setting in settings_of(tree, prefix) if "." not in setting.key.removeprefix(prefix)]
    if own:
        yield f"\n### {title}\n\n{text}\n\n| Key | Default | Range | Unit | Meaning |\n|---|---|---|---|---|\n"
        yield from map(_markdown_row, own)
    for name, section in _sections(tree):
        yield from _markdown_tree(section, f"{prefix}{name}.", f"`{prefix}{name}`", str(section.__doc__))


def _markdown_row(setting: Setting) -> str:
    name = setting.key.rpartition(".")[2]
    meaning = setting.description + (" *Restart.*" if setting.restart_reason else "")
    return f"| `{name}` | {_markdown_default(setting)} | {setting.range} | {setting.unit} | {meaning} |\n"


def _markdown_default(setting: Setting) -> str:
    names_by_value: dict[Value, list[str]] = {}
    for name, values in OVERLAYS.items():
        if setting.key in values:
            names_by_value.setdefault(values[setting.key], []).append(name)
    others = [f"`{to_yaml_scalar(value)}` in {' and '.join(names)}" for value, names in names_by_value.items()]
    return "; ".join([f"`{to_yaml_scalar(setting.default)}`", *others])


def _yaml_tree(tree: type[msgspec.Struct], prefix: str, values: Mapping[str, Value]) -> Iterator[str]:
    """Yield the lines of a tree's own settings and of its sections, in the order of their declaration."""
    settings = {setting.key: setting for setting in settings_of(tree, prefix)}
    sections = dict(_sections(tree))
    indent = "  " * prefix.count(".")
    for name in tree.__struct_fields__:
        if name in sections:
            yield from _yaml_section(sections[name], prefix + name, values)
            continue
        setting = settings[prefix + name]
        restart = " Restart to change." if setting.restart_reason else ""
        yield f"{indent}# {setting.description}{restart}"
        yield f"{indent}# Range: {setting.range}. Unit: {setting.unit}."
        yield f"{indent}{name}: {to_yaml_scalar(values[setting.key])}"


def _yaml_section(section: type[msgspec.Struct], key: str, values: Mapping[str, Value]) -> Iterator[str]:
    indent = "  " * key.count(".")
    yield ""
    yield f"{indent}# {section.__doc__}"
    yield f"{indent}{key.rpartition('.')[2]}:"
    yield from _yaml_tree(section, f"{key}.", values)


def _sections(tree: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    for name, hint in get_type_hints(tree).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield name, hint
