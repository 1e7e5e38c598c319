"""A tree of settings: a msgspec struct whose fields are settings (annotated by `describe`) or sections (structs).

The configuration of the core is one tree; each module declares another one for its section. The functions below work
on any tree. `prefix` comes before the names of its fields in a dotted key: "" for the core, `archive.` for a module of
that name.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final, Protocol, TypeVar, get_type_hints, runtime_checkable

import msgspec

from core.settings.setting import Setting, SettingProblem, Value

_NAME_IN_RELATION: Final = re.compile(r"\{([a-z0-9_.]+)\}")
Tree = TypeVar("Tree", bound=msgspec.Struct)


@runtime_checkable
class HasContradictions(Protocol):
    """A section whose settings can contradict each other although each is within its range."""

    def contradictions(self) -> Iterator[str]:
        """Yield each relation that does not hold, with the names of its settings in braces: `{low} < {high}`."""


def settings_of(tree: type[msgspec.Struct], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a tree in the order of their declaration. Every field must have a default."""
    hints = get_type_hints(tree, include_extras=True)
    defaults = tree()
    for field in tree.__struct_fields__:
        if _is_section(hints[field]):
            yield from settings_of(hints[field], f"{prefix}{field}.")
        else:
            yield Setting(prefix + field, hints[field], getattr(defaults, field))


def values_of(tree: msgspec.Struct, prefix: str = "") -> dict[str, Value]:
    """Return the values of a tree by dotted key, in the order of `settings_of`."""
    values: dict[str, Value] = {}
    for field in tree.__struct_fields__:
        value = getattr(tree, field)
        if isinstance(value, msgspec.Struct):
            values |= values_of(value, f"{prefix}{field}.")
        else:
            values[prefix + field] = value
    return values


def build_tree(tree: type[Tree], values: Mapping[str, Value], prefix: str = "") -> Tree:
    """Return the tree with these values. `values` has a valid one for each of its settings, by dotted key."""
    members: dict[str, object] = {}
    for field, hint in get_type_hints(tree).items():
        if _is_section(hint):
            members[field] = build_tree(hint, values, f"{prefix}{field}.")
        else:
            members[field] = values[prefix + field]
    return tree(**members)


def contradictions(tree: msgspec.Struct, prefix: str = "", faulty: Collection[str] = ()) -> list[SettingProblem]:
    """Return a problem for each relation between settings that does not hold.

    Relations that involve a key in `faulty` are skipped: its value was refused, and the default was used instead.
    """
    problems = []
    relations = tree.contradictions() if isinstance(tree, HasContradictions) else ()
    for relation in relations:
        values = {prefix + name: value for name, value in values_of(tree).items()}
        keys = [prefix + name for name in dict.fromkeys(_NAME_IN_RELATION.findall(relation))]
        if not any(key in faulty for key in keys):
            given = ", ".join(f"{key} is {values[key]}" for key in keys)
            expected = _NAME_IN_RELATION.sub(lambda match: prefix + match[1], relation)
            problems.append(SettingProblem(keys[0], f"{given}: expected {expected}"))
    for field in tree.__struct_fields__:
        if isinstance(section := getattr(tree, field), msgspec.Struct):
            problems += contradictions(section, f"{prefix}{field}.", faulty)
    return problems


def _is_section(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)
