"""The configuration's reference, written from the types: `docs/configuration.md` and the annotated files in
`config/`.

    python -m core.settings_manual markdown    > docs/configuration.md
    python -m core.settings_manual development > config/default.yaml
    python -m core.settings_manual production  > config/production-ready.yaml

Tests hold the three files equal to what this prints, so that a range, a default or a meaning that changes in
`core.settings.config` cannot stay wrong anywhere else. Rejected: files kept by hand and checked for their ranges only,
whose prose drifts.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Final, get_type_hints

import msgspec

from core.access.key_file import KEY_COUNT_MAX, KEY_MEMBERS, to_yaml_entry
from core.settings.config import SETTINGS, Config, values_of
from core.settings.environment import EnvironmentName
from core.settings.setting import Setting, Value, to_yaml_scalar
from core.startup import API_KEY_LENGTH_MIN, OVERLAYS, PLACES, RESTART_REASONS, defaults

_YAML_HEADERS: Final[Mapping[EnvironmentName, str]] = {
    "development": """\
# mlsdm: the development defaults, every setting with its unit and range.
#
# These are the values that hold without any file; a file needs only what it changes. Do not deploy this one: a file
# outranks the overlay of MLSDM_ENV, so that it would switch the rate limits off in production. Begin with
# production-ready.yaml there. Check a file with `mlsdm check-config PATH`; use it with CONFIG_PATH=PATH.
""",
    "production": """\
# mlsdm: settings for production, every setting with its unit and range.
#
# Run with MLSDM_ENV=production, CONFIG_PATH=<this file>, and API_KEY=<a secret> or a keys file (security.keys_path);
# without any key the service refuses to start. Secrets stay out of this file. It differs from the defaults of
# MLSDM_ENV=production in server.host alone. Check it with `mlsdm check-config PATH`.
#
# config.yaml beside it is a link to it, so that a container finds this file when its directory is mounted at
# /etc/mlsdm.
""",
}
# A container is reached from outside; the embedded default stays on the loopback interface in every environment, so
# that only somebody who said so opens a port to the network.
_YAML_CHANGES: Final[Mapping[EnvironmentName, Mapping[str, Value]]] = {
    "development": {},
    "production": {"server.host": "0.0.0.0"},  # noqa: S104  the file for containers, behind a required key
}

_INTRODUCTION = f"""\
# Configuration

<!-- Written by `python -m core.settings_manual markdown`; a test holds it to the types in core/settings/config.py. -->

Settings come from five places. Each overrides the ones before it:

1. the defaults below;
2. the overlay of `MLSDM_ENV`: `development` (or `dev`, the default), `staging` or `production`;
3. the YAML file named by `CONFIG_PATH`, which must exist when the variable is set; an empty file is allowed. When it is
   not set, a server takes the first that is there of
   {", ".join(f"`{place}`" for place in PLACES)};
4. `MLSDM_<SECTION>__<KEY>` variables, such as `MLSDM_CAPACITY=1000` or `MLSDM_MORAL_FILTER__EMA_ALPHA=0.2`;
5. the plain variables below.

Unknown keys, keys given twice, wrong types and values out of range are refused, all of them in one message that names
the key, the line or variable, and what was expected. Numbers are decimal (`20000`, `20_000`, `0.1`, `1e-3`); switches
are `true`, `false`, `1` or `0`; names are matched whatever their case. In a file, numbers and switches are not quoted.
A key or a variable without a value is refused, because a lost value must not pass for a default; an empty section is
fine.

`mlsdm check-config PATH` checks a file, and the keys file that it names, without starting anything.
`config/default.yaml` and `config/production-ready.yaml` list every setting. On `HUP` both files are read again; when
anything is wrong with them, or a setting marked *restart* has changed, all of it is refused and the old one stays.

## Variables

| Variable | Meaning |
|---|---|
| `MLSDM_ENV` | `development` (`dev`), `staging` or `production`. |
| `CONFIG_PATH` | The YAML file; else the first of the places above. |
| `API_KEY` | A key for clients, beside those of the keys file: role `write`, tier `standard`. |
| `HOST`, `PORT`, `WORKERS` | `server.host`, `server.port`, `server.workers`. |
| `LOG_LEVEL` | `observability.logging.level`. |
| `DISABLE_RATE_LIMIT` | `1` switches `security.rate_limiting.enabled` off; `0` leaves it as configured. |

`API_KEY` is visible ASCII without spaces; blanks and newlines around it are dropped, and a blank key is as none. In
production it has at least {API_KEY_LENGTH_MIN} characters; elsewhere a shorter one is said to be short.

An unknown name that begins with `MLSDM_` is refused, except `MLSDM_API_SERVICE_*` and `MLSDM_API_PORT*`, which
Kubernetes injects for a service called `mlsdm-api`. For services of other names that begin with `mlsdm`, set
`enableServiceLinks: false` in the pod.

Two conditions join several settings: `moral_filter.min_threshold` ≤ `moral_filter.initial_threshold` ≤
`moral_filter.max_threshold`, and `resources.drain_period` < `resources.shutdown_timeout`.

`resources.drain_period` is 5 s in staging and production because new connections still arrive between SIGTERM and the
moment when the last load balancer has noticed, a few seconds in Kubernetes. It is the first part of
`resources.shutdown_timeout`, which must be at most the pod's `terminationGracePeriodSeconds` (30 unless set).
"""


def markdown() -> str:
    """Return docs/configuration.md."""
    return _INTRODUCTION + _markdown_keys() + "\n## Settings\n" + "".join(_markdown_sections())


def yaml_file(environment: EnvironmentName) -> str:
    """Return the annotated file for `environment`: development or production."""
    values = {**values_of(defaults(environment)), **_YAML_CHANGES[environment]}
    return _YAML_HEADERS[environment] + "\n" + "\n".join(_yaml_lines(Config, "", values)) + "\n"


_MEMBER_DEFAULTS: Final = {"tier": f"`{KEY_MEMBERS['tier'].default}`", "expires": "never"}
# Of a token that nobody knows: who copies the example has let nobody in.
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

Clients send a token, as `Authorization: Bearer TOKEN` or as `X-API-Key: TOKEN`. The server knows the digest of each
token and, with it, a role (`read` < `write` < `admin`: each may do what those before it may), a rate tier and, if
wanted, an end. Tokens are those of `API_KEY` and of the file that `security.keys_path` names, relative to the working
directory. Production refuses to start without any; elsewhere a server without keys is open to all who can connect.

`mlsdm key` makes a key. The entry for the file goes to stdout. The token goes to stderr, once, and is kept nowhere:

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


def _markdown_sections() -> Iterator[str]:
    section = None
    for setting in SETTINGS.values():
        prefix, _, name = setting.key.rpartition(".")
        if prefix != section:
            section = prefix
            title, about = (f"`{prefix}`", _section_type(prefix).__doc__) if prefix else ("The block", _BLOCK)
            yield f"\n### {title}\n\n{about}\n\n| Key | Default | Range | Unit | Meaning |\n|---|---|---|---|---|\n"
        restart = " *Restart.*" if setting.key in RESTART_REASONS else ""
        cells = (f"`{name}`", _markdown_default(setting), setting.range, setting.unit, setting.description + restart)
        yield f"| {' | '.join(cells)} |\n"


_BLOCK = "The size of the shared memory, at the top level of the file. All of it is allocated at start."


def _markdown_default(setting: Setting) -> str:
    names_by_value: dict[Value, list[str]] = {}
    for name, values in OVERLAYS.items():
        if setting.key in values:
            names_by_value.setdefault(values[setting.key], []).append(name)
    others = [f"`{to_yaml_scalar(value)}` in {' and '.join(names)}" for value, names in names_by_value.items()]
    return "; ".join([f"`{to_yaml_scalar(setting.default)}`", *others])


def _section_type(prefix: str) -> type[msgspec.Struct]:
    tree: type[msgspec.Struct] = Config
    for name in prefix.split("."):
        tree = get_type_hints(tree)[name]
    return tree


def _yaml_lines(tree: type[msgspec.Struct], section: str, values: Mapping[str, Value]) -> Iterator[str]:
    indent = "  " * section.count(".")
    for name in tree.__struct_fields__:
        key = section + name
        if key in SETTINGS:
            setting = SETTINGS[key]
            restart = " Restart to change." if key in RESTART_REASONS else ""
            yield f"{indent}# {setting.description}{restart}"
            yield f"{indent}# Range: {setting.range}. Unit: {setting.unit}."
            yield f"{indent}{name}: {to_yaml_scalar(values[key])}"
        else:
            subtree = _section_type(key)
            yield ""
            yield f"{indent}# {subtree.__doc__}"
            yield f"{indent}{name}:"
            yield from _yaml_lines(subtree, key + ".", values)


def main(arguments: list[str]) -> int:
    """Print what is asked for; return the exit status."""
    match arguments:
        case ["markdown"]:
            sys.stdout.write(markdown())
        case ["development" | "production" as environment]:
            sys.stdout.write(yaml_file(environment))
        case _:
            sys.stderr.write("usage: python -m core.settings_manual markdown | development | production\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
