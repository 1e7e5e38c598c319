"""The keys file: a YAML document that lists API keys by the digest of their tokens.

    keys:
      - id: web
        digest: <the SHA-256 of the token web.SECRET, 64 hexadecimal digits>
        role: write
        tier: high
        expires: 2027-01-31T00:00:00Z

It is read at the start and at every reload. All problems are listed with their lines, and nothing is raised. Each
scalar is its text, quoted or not: the id `010` is the text 010. The comment above `read` lists what is refused.

Invariants: a refused value may be a secret in the wrong place. So no problem shows a digest, an invalid id (it is most
likely `web.SECRET`), or a text that is longer than a member can be.
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
# Keys. Reading this many takes half a second, and a reload must not block the arbiter for much longer. More clients
# need user accounts, not keys.
KEY_COUNT_MAX: Final = 1_024
ROLES_BY_NAME: Final = {role.name.lower(): role for role in Role}
_SHOWN_LENGTH_MAX: Final = 35  # characters; a time of RFC 3339 in nanoseconds has 35, tokens and digests have more
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d(?P<time>[T ]\d\d:\d\d:\d\d(\.\d+)?(?P<offset>Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_SCALARS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "timestamp"))


class KeyFile(NamedTuple):
    """The content of a keys file. `keys` is incomplete when there are problems."""

    keys: list[Key]
    problems: list[SettingProblem]


# Refused: a file without a key (an accidentally emptied file would open the server); a file that everybody can write to
# (everybody could add a key); two keys with the same id or digest, or with the digest of API_KEY (a token opens one
# key). A key that has expired is valid; it opens nothing and may stay in the file.
def read(path: str, api_key: str | None) -> KeyFile:
    """Return the content of the file at `path`, which must not have the digest of the token `api_key`. Never raises."""
    reader = _Reader(path)
    try:
        content = yaml_document.read(path)
    except Unreadable as error:
        reader.reject_file(f"which {error}: expected a YAML file of keys")
        return KeyFile([], reader.problems)
    if content.mode & stat.S_IWOTH:
        reader.reject_file(
            "which everybody can write to: expected a file that only owner and group can write to (chmod o-w)"
        )
        return KeyFile([], reader.problems)
    reader.read_keys(content.root, token_digest(api_key) if api_key else None)
    return KeyFile(reader.keys, reader.problems)


def to_yaml_entry(members: Mapping[str, str]) -> str:
    """Return the lines of one key, as `read` reads them, for appending to a file that begins with `keys:`."""
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
        raise InvalidText(f"is not a digest ({len(text)} characters)")
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
    """Return Unix seconds. RFC 3339 §5.6, with T and Z in any case or a blank for T; or its full-date, 00:00 UTC."""
    given = _TIME.fullmatch(text.upper())
    if not given:
        raise InvalidText(f"is {_brief(text)}")
    if given["time"] and not given["offset"]:
        raise InvalidText(f"is {_brief(text)}, which has no UTC offset")
    try:
        time = datetime.fromisoformat(text.upper())
    except ValueError as error:
        raise InvalidText(f"is {_brief(text)}, which does not exist") from error
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
        _expires, "a time with its offset, such as 2027-01-31T00:00:00Z, or a date, which means 00:00 UTC", math.inf
    ),
}


def _brief(text: str) -> str:
    return quote_if_needed(text) if len(text) <= _SHOWN_LENGTH_MAX else f"a text of {len(text)} characters"


# -- the reader --------------------------------------------------------------------------------------------------------
class _Reader:
    """Reads a document from its root down to the members of each key; collects keys and problems."""

    def __init__(self, path: str) -> None:
        self.keys: list[Key] = []
        self.problems: list[SettingProblem] = []
        self._path = path
        self._holders: dict[str | bytes, str] = {}  # id or digest → the key that has it

    def reject_file(self, finding: str) -> None:
        """Add a problem of the whole file. `finding` follows its path."""
        self.problems.append(SettingProblem(KEYS_PATH, f"{KEYS_PATH} is {yaml_document.escape(self._path)}, {finding}"))

    def read_keys(self, root: yaml.Node | None, api_digest: bytes | None) -> None:
        """Read every key below `root`."""
        if api_digest:
            self._holders[api_digest] = "API_KEY"
        sections = {} if root is None else self._read_mapping(root, "", ("keys",))
        node = sections.get("keys")
        if isinstance(node, yaml.SequenceNode) and node.value:
            if len(node.value) > KEY_COUNT_MAX:
                self._reject("keys", f"has {len(node.value)} keys", node, f"at most {KEY_COUNT_MAX}")
                return
            for index, item in enumerate(node.value):
                self._read_key(item, f"keys[{index}]")
        elif node is not None and not isinstance(node, yaml.SequenceNode) and not yaml_document.is_null(node):
            self._reject("keys", f"is {_kind(node)}", node, "a list of keys")
        elif not self.problems:
            self.reject_file("which holds no key: expected at least one")

    def _read_key(self, node: yaml.Node, where: str) -> None:
        problem_count = len(self.problems)
        nodes = self._read_mapping(node, where, tuple(KEY_MEMBERS))
        if not isinstance(node, yaml.MappingNode):
            return
        members: dict[str, Any] = {}
        for name, member in KEY_MEMBERS.items():
            if name in nodes:
                members[name] = self._read_value(nodes[name], f"{where}.{name}", member)
            elif member.default is None:
                self._reject(where, f"has no {name}", node, member.expected)
            else:
                members[name] = member.default
        for name in ("id", "digest"):
            holder = self._holders.setdefault(members[name], where) if members.get(name) else where
            if holder != where:
                self._reject(f"{where}.{name}", f"is that of {holder}", nodes[name], "a unique one")
        if problem_count == len(self.problems):
            self.keys.append(Key(**members))

    def _read_value(self, node: yaml.Node, where: str, member: Member) -> Any:
        """Return the value of a member's node; None when it is refused."""
        if not isinstance(node, yaml.ScalarNode):
            self._reject(where, f"is {_kind(node)}", node, member.expected)
        elif yaml_document.is_null(node) or not node.value.strip():
            self._reject(where, "is empty", node, member.expected)
        elif node.tag not in _SCALARS:
            self._reject(where, "has a YAML tag", node, member.expected)
        else:
            try:
                return member.parse(node.value.strip())
            except InvalidText as error:
                self._reject(where, str(error), node, member.expected)
        return None

    def _read_mapping(self, node: yaml.Node, where: str, names: tuple[str, ...]) -> dict[str, yaml.Node]:
        """Return the value nodes of a mapping by name; names that are not in `names` are problems."""
        expected = " and ".join(names) if len(names) == 1 else "one of " + ", ".join(names)
        if not isinstance(node, yaml.MappingNode):
            self._reject(where or "the keys file", f"is {_kind(node)}", node, f"a section with {', '.join(names)}")
            return {}
        found: dict[str, yaml.Node] = {}
        prefix = where and where + "."
        for name_node, value_node in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
            if name is None:
                self._reject(where or "the keys file", f"has {_kind(name_node)} for a name", name_node, expected)
            elif name not in names:
                self._reject(prefix + _brief(name), "is unknown", name_node, expected + suggestion(name, names))
            elif name in found:
                self._reject(prefix + name, "is given twice", name_node, "once")
            else:
                found[name] = value_node
        return found

    def _reject(self, where: str, finding: str, node: yaml.Node, expected: str) -> None:
        origin = yaml_document.origin(self._path, node)
        self.problems.append(SettingProblem(where, f"{where} {finding} ({origin}): expected {expected}"))


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "empty" if yaml_document.is_null(node) else "a text"
