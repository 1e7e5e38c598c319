"""The keys file: which tokens open the service, as a YAML document says it.

    keys:
      - id: web
        digest: <the SHA-256 of the token web.SECRET, 64 hexadecimal digits>
        role: write
        tier: high
        expires: 2027-01-31T00:00:00Z

It is read with the care of the configuration file (`core.settings.yaml_document`), at the start and at every reload:
all problems are listed with their lines, and nothing is raised half-way. Each scalar is taken as it is written, quoted
or not, so that the id `010` is 010 and the date is no object. `entry` writes what `read` reads.

A file that is named holds at least one key; otherwise an open server would hide behind a file that was emptied by
accident. A file that everybody may write to is refused, for everybody could write a key into it. Two keys with one id
or one digest are refused, and so is the digest of API_KEY: a token opens one key. A key that has expired is no problem:
it opens nothing, and stays until somebody tidies up.

What is refused may be a secret in the wrong place. So no problem shows a digest, an id that is none (`web.SECRET`, most
likely), or any text longer than what the members may be.
"""

import math
import re
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import yaml

from core.access.keys import API_KEY_ID, ID, Key, Role, token_digest
from core.settings import yaml_document
from core.settings.setting import InvalidText, SettingProblem, quote_if_needed, suggestion
from core.settings.tiers import STANDARD, TIERS
from core.settings.yaml_document import Unreadable

KEYS_PATH: Final = "security.keys_path"
# KeyFile. It takes half a second to read so many, and a reload must not hold up the arbiter for much longer; who needs
# more needs users and not keys.
KEY_COUNT_MAX: Final = 1_024
ROLES_BY_NAME: Final = {role.name.lower(): role for role in Role}
_SHOWN_LENGTH_MAX: Final = 35  # characters: a time of RFC 3339 in nanoseconds; tokens and digests have more
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d(?P<time>[T ]\d\d:\d\d:\d\d(\.\d+)?(?P<offset>Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_SCALARS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "timestamp"))


class KeyFile(NamedTuple):
    """What a keys file says: its keys, and its problems. With a problem, the keys are not all there."""

    keys: list[Key]
    problems: list[SettingProblem]


def read(path: str, api_key: str | None) -> KeyFile:
    """Return what the file at `path` says, beside an API_KEY. Problems are reported, never raised."""
    walk = _Walk(path)
    try:
        content = yaml_document.read(path)
    except Unreadable as error:
        walk.refuse_file(f"which {error}: expected a YAML file of keys")
        return KeyFile([], walk.problems)
    if content.mode & stat.S_IWOTH:
        walk.refuse_file("which everybody may write to: expected one that others cannot change (chmod o-w)")
        return KeyFile([], walk.problems)
    walk.take_file(content.root, token_digest(api_key) if api_key else None)
    return KeyFile(walk.keys, walk.problems)


def to_yaml_entry(members: Mapping[str, str]) -> str:
    """Return the lines that give one key with these members, to be appended to a file that begins with `keys:`."""
    lines = yaml.safe_dump([dict(members)], sort_keys=False).splitlines(keepends=True)
    return "".join("  " + line for line in lines)


# -- the members of a key ----------------------------------------------------------------------------------------------
def _id(text: str) -> str:
    if not text:
        raise InvalidText("is empty")
    if text == API_KEY_ID:
        raise InvalidText(f"is {API_KEY_ID}, which is the key of the environment")
    if len(text) > 64:
        raise InvalidText(f"has {len(text)} characters")
    if not ID.fullmatch(text):
        raise InvalidText(f"has {next(character for character in text if not ID.fullmatch(character))!a} in it")
    return text


def _digest(text: str) -> bytes:
    if not _DIGEST.fullmatch(text):
        raise InvalidText(f"is no digest ({len(text)} characters)")
    return bytes.fromhex(text)


def _role(text: str) -> Role:
    if text.lower() not in ROLES_BY_NAME:
        raise InvalidText(f"is {_brief(text)}")
    return ROLES_BY_NAME[text.lower()]


def _tier(text: str) -> str:
    if text.lower() not in TIERS:
        raise InvalidText(f"is {_brief(text)}")
    return text.lower()


def _expires(text: str) -> float:
    """Return Unix seconds. RFC 3339 §5.6, where T and Z may be small and T a blank; or its full-date alone, in UTC."""
    given = _TIME.fullmatch(text.upper())
    if not given:
        raise InvalidText(f"is {_brief(text)}")
    if given["time"] and not given["offset"]:
        raise InvalidText(f"is {_brief(text)}, which says no offset")
    try:
        time = datetime.fromisoformat(text.upper())
    except ValueError as error:
        raise InvalidText(f"is {_brief(text)}, which no calendar or clock has") from error
    return (time if given["time"] else time.replace(tzinfo=UTC)).timestamp()


class Member(NamedTuple):
    """A member of a key. `parse` raises InvalidText. `default` is None when the member is required."""

    parse: Callable[[str], Any]
    expected: str
    default: Any = None


KEY_MEMBERS: Final[Mapping[str, Member]] = {
    "id": Member(_id, "1 to 64 letters, digits, _ and -"),
    "role": Member(_role, "one of " + ", ".join(ROLES_BY_NAME)),
    "tier": Member(_tier, "one of " + ", ".join(TIERS), STANDARD),
    "digest": Member(_digest, "the SHA-256 of the whole token in 64 hexadecimal digits"),
    "expires": Member(
        _expires, "a time with its offset, such as 2027-01-31T00:00:00Z, or a date, which begins in UTC", math.inf
    ),
}


def _brief(text: str) -> str:
    return quote_if_needed(text) if len(text) <= _SHOWN_LENGTH_MAX else f"a text of {len(text)} characters"


# -- the walk ----------------------------------------------------------------------------------------------------------
class _Walk:
    """One way through the document, from its root to the members, gathering keys and problems."""

    def __init__(self, path: str) -> None:
        self.keys: list[Key] = []
        self.problems: list[SettingProblem] = []
        self._path = path
        self._holders: dict[str | bytes, str] = {}  # of each id and digest, where it was met first

    def refuse_file(self, what: str) -> None:
        """Note what is wrong with the file as a whole."""
        self.problems.append(SettingProblem(KEYS_PATH, f"{KEYS_PATH} is {yaml_document.escape(self._path)}, {what}"))

    def take_file(self, root: yaml.Node | None, api_digest: bytes | None) -> None:
        """Take every key below `root`."""
        if api_digest:
            self._holders[api_digest] = "API_KEY"
        sections = {} if root is None else self._members(root, "", ("keys",))
        node = sections.get("keys")
        if isinstance(node, yaml.SequenceNode) and node.value:
            if len(node.value) > KEY_COUNT_MAX:
                self._refuse("keys", f"has {len(node.value)} keys", node, f"at most {KEY_COUNT_MAX}")
                return
            for index, item in enumerate(node.value):
                self._take_key(item, f"keys[{index}]")
        elif node is not None and not isinstance(node, yaml.SequenceNode) and not yaml_document.is_null(node):
            self._refuse("keys", f"is {_kind(node)}", node, "a list of keys")
        elif not self.problems:
            self.refuse_file("which holds no key: expected at least one")

    def _take_key(self, node: yaml.Node, where: str) -> None:
        problem_count = len(self.problems)
        nodes = self._members(node, where, tuple(KEY_MEMBERS))
        if not isinstance(node, yaml.MappingNode):
            return
        members: dict[str, Any] = {}
        for name, member in KEY_MEMBERS.items():
            if name in nodes:
                members[name] = self._value(nodes[name], f"{where}.{name}", member)
            elif member.default is None:
                self._refuse(where, f"has no {name}", node, member.expected)
            else:
                members[name] = member.default
        for name in ("id", "digest"):
            holder = self._holders.setdefault(members[name], where) if members.get(name) else where
            if holder != where:
                self._refuse(f"{where}.{name}", f"is that of {holder}", nodes[name], "one of its own")
        if problem_count == len(self.problems):
            self.keys.append(Key(**members))

    def _value(self, node: yaml.Node, where: str, member: Member) -> Any:
        """Return what a member's node says; None when it is refused."""
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(where, f"is {_kind(node)}", node, member.expected)
        elif yaml_document.is_null(node) or not node.value.strip():
            self._refuse(where, "is empty", node, member.expected)
        elif node.tag not in _SCALARS:
            self._refuse(where, "has a YAML tag", node, member.expected)
        else:
            try:
                return member.parse(node.value.strip())
            except InvalidText as error:
                self._refuse(where, str(error), node, member.expected)
        return None

    def _members(self, node: yaml.Node, where: str, names: tuple[str, ...]) -> dict[str, yaml.Node]:
        """Return the values of a mapping by name, all of them in `names`."""
        expected = " and ".join(names) if len(names) == 1 else "one of " + ", ".join(names)
        if not isinstance(node, yaml.MappingNode):
            self._refuse(where or "the keys file", f"is {_kind(node)}", node, f"a section with {', '.join(names)}")
            return {}
        found: dict[str, yaml.Node] = {}
        prefix = where and where + "."
        for name_node, value_node in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
            if name is None:
                self._refuse(where or "the keys file", f"has {_kind(name_node)} for a name", name_node, expected)
            elif name not in names:
                self._refuse(prefix + _brief(name), "is unknown", name_node, expected + suggestion(name, names))
            elif name in found:
                self._refuse(prefix + name, "is given twice", name_node, "it once")
            else:
                found[name] = value_node
        return found

    def _refuse(self, where: str, what: str, node: yaml.Node, expected: str) -> None:
        origin = yaml_document.origin(self._path, node)
        self.problems.append(SettingProblem(where, f"{where} {what} ({origin}): expected {expected}"))


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "empty" if yaml_document.is_null(node) else "a text"
