"""The keys file: what it may contain, and each possible mistake with its line and without its secrets."""

import math
import os
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core import settings_manual
from core.access.key_file import KEY_COUNT_MAX, KEY_MEMBERS, read, to_yaml_entry
from core.access.keys import Key, Role, token_digest
from core.settings import yaml_document

D1, D2 = token_digest("web.1").hex(), token_digest("ops.2").hex()
ID, ROLE, TIER, DIGEST, EXPIRES = (KEY_MEMBERS[name].expected for name in ("id", "role", "tier", "digest", "expires"))
NAMES = "expected one of id, role, tier, digest, expires"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    mask = os.umask(0o022)  # a file that everybody may write to is refused
    yield tmp_path / "keys.yaml"
    os.umask(mask)


def written(file: Path, text: str) -> Path:
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def problems_of(file: Path, api_key: str | None = None) -> list[str]:
    """Return the problems of a file that must have some, with `@` for the place of the file."""
    problems = read(str(file), api_key).problems
    assert problems
    for problem in problems:
        assert problem.sentence.isprintable()
        assert problem.sentence.startswith(problem.key)
        assert D1 not in problem.sentence
    return [problem.sentence.replace(f"{file}, line ", "@") for problem in problems]


class TestRead:
    def test_all_members(self, file: Path) -> None:
        """Names and hexadecimal digits are case-insensitive; a scalar may be quoted or not."""
        written(
            file,
            f"""\
            keys:
              - {{id: web, digest: {D1}, role: write}}
              - id: 010
                digest: "{D2.upper()}"
                role: Admin
                tier: BULK
                expires: 2027-01-31T01:00:00+01:00
            """,
        )

        assert read(str(file), "k").keys == [
            Key("web", Role.WRITE, "standard", bytes.fromhex(D1), math.inf),
            Key("010", Role.ADMIN, "bulk", bytes.fromhex(D2), datetime(2027, 1, 31, tzinfo=UTC).timestamp()),
        ]
        assert read(str(file), "k").problems == []

    @pytest.mark.parametrize(
        "id_", ["a", "no", "123", "1e3", "0x1", "2027-01-31", "true", "_", "-a", "A-z_9", "x" * 64]
    )
    def test_an_id_is_read_as_text(self, file: Path, id_: str) -> None:
        """An id that YAML would read as a number, a date or a switch stays text."""
        [key] = read(str(written(file, f"keys: [{{id: {id_}, digest: {D1}, role: read}}]")), None).keys

        assert key.id == id_

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2027-01-31", "2027-01-31T00:00:00+00:00"),
            ("2027-01-31T00:00:00Z", "2027-01-31T00:00:00+00:00"),
            ("2027-01-31t12:30:15.5z", "2027-01-31T12:30:15.500000+00:00"),
            ("2027-01-31 12:30:15.123456789Z", "2027-01-31T12:30:15.123456+00:00"),
            ("'2028-02-29T23:59:59-00:00'", "2028-02-29T23:59:59+00:00"),
            ("2027-01-31T00:00:00-12:30", "2027-01-31T12:30:00+00:00"),
            ("0001-01-01T00:00:00+23:59", None),
            ("9999-12-31T23:59:59-23:59", None),
        ],
    )
    def test_times_of_expiry(self, file: Path, text: str, expected: str | None) -> None:
        """A time of RFC 3339, or a date, which means 00:00 UTC; even at both ends of the calendar."""
        [key] = read(str(written(file, f"keys: [{{id: a, digest: {D1}, role: read, expires: {text}}}]")), None).keys

        if expected is not None:
            assert datetime.fromisoformat(expected).timestamp() == key.expires

    def test_a_date_does_not_depend_on_the_time_zone(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A date means 00:00 UTC in every time zone of the server."""
        written(file, f"keys: [{{id: a, digest: {D1}, role: read, expires: 1970-01-02}}]")
        monkeypatch.setenv("TZ", "UTC-5")
        time.tzset()
        try:
            [key] = read(str(file), None).keys
        finally:
            monkeypatch.undo()
            time.tzset()

        assert key.expires == 86_400.0

    def test_an_expired_key_is_not_a_problem(self, file: Path) -> None:
        """An expired key is read like any other."""
        content = read(str(written(file, f"keys: [{{id: a, digest: {D1}, role: read, expires: 1999-12-31}}]")), None)

        assert content.problems == []
        assert [key.id for key in content.keys] == ["a"]

    def test_the_maximum_number_of_keys(self, file: Path) -> None:
        """The maximum is accepted; one more is refused by one problem."""
        keys = [f"  - {{id: k{n}, role: read, digest: {token_digest(str(n)).hex()}}}" for n in range(KEY_COUNT_MAX + 1)]
        count = len(read(str(written(file, "keys:\n" + "\n".join(keys[:-1]))), None).keys)

        assert count == KEY_COUNT_MAX
        assert problems_of(written(file, "keys:\n" + "\n".join(keys))) == [
            "keys has 1025 keys (@2): expected at most 1024"
        ]

    def test_entries_read_back_as_written(self, file: Path) -> None:
        """Entries can be appended to one another, even if YAML would read a member as something other than text."""
        members = [
            {"id": "no", "digest": "1" * 64, "role": "read", "tier": "high", "expires": "2027-01-31"},
            {"id": "-", "digest": D1, "role": "admin"},
            {"id": "1e5", "digest": D2, "role": "write", "expires": "2027-01-31T00:00:00Z"},
        ]
        content = read(str(written(file, "keys:\n" + "".join(map(to_yaml_entry, members)))), None)

        assert content.problems == []
        assert [given["id"] for given in members] == [key.id for key in content.keys]

    def test_the_documented_file_is_valid(self, file: Path) -> None:
        """The example of docs/configuration.md can be used as it is."""
        example_text = settings_manual.markdown({}).split("```yaml\n")[1].split("```")[0]
        content = read(str(written(file, example_text)), None)

        assert content.problems == []
        assert [key[:3] for key in content.keys] == [("web", Role.WRITE, "high")]


MALFORMED = {
    "empty": ("", ["security.keys_path is {file}, which holds no key: expected at least one"]),
    "comments": ("# none\n", ["security.keys_path is {file}, which holds no key: expected at least one"]),
    "no keys": ("keys:\n", ["security.keys_path is {file}, which holds no key: expected at least one"]),
    "empty list": ("keys: []\n", ["security.keys_path is {file}, which holds no key: expected at least one"]),
    "nothing": ("{}", ["security.keys_path is {file}, which holds no key: expected at least one"]),
    "a list": ("- id: web\n", ["the keys file is a list (@1): expected a section with keys"]),
    "a text": (f"{D1}\n", ["the keys file is a text (@1): expected a section with keys"]),
    "a section": (f"keys:\n  web: {D1}\n", ["keys is a section (@2): expected a list of keys"]),
    "text for keys": (f"keys: {D1}\n", ["keys is a text (@1): expected a list of keys"]),
    "another section": ("key: []\n", ["key is unknown (@1): expected keys; did you mean keys?"]),
    "keys twice": (
        f"keys: [{{id: a, role: read, digest: {D1}}}]\nkeys:\n",
        ["keys is given twice (@2): expected once"],
    ),
    "a key without members": (
        "keys: [{}]",
        [
            f"keys[0] has no id (@1): expected {ID}",
            f"keys[0] has no role (@1): expected {ROLE}",
            f"keys[0] has no digest (@1): expected {DIGEST}",
        ],
    ),
    "a key of another kind": (
        f"keys: [~, {D1}, [{D1}]]",
        [
            "keys[0] is empty (@1): expected a section with id, role, tier, digest, expires",
            "keys[1] is a text (@1): expected a section with id, role, tier, digest, expires",
            "keys[2] is a list (@1): expected a section with id, role, tier, digest, expires",
        ],
    ),
    "empty members": (
        "keys:\n- id:\n  role: ~\n  tier: ''\n  digest: null\n  expires: ' '\n",
        [
            f"keys[0].id is empty (@2): expected {ID}",
            f"keys[0].role is empty (@3): expected {ROLE}",
            f"keys[0].tier is empty (@4): expected {TIER}",
            f"keys[0].digest is empty (@5): expected {DIGEST}",
            f"keys[0].expires is empty (@6): expected {EXPIRES}",
        ],
    ),
    "members of another kind": (
        f"keys:\n- id: [a]\n  role: {{a: b}}\n  tier: !x high\n  digest: !!binary {D1}\n  expires: !!python/name:a x\n",
        [
            f"keys[0].id is a list (@2): expected {ID}",
            f"keys[0].role is a section (@3): expected {ROLE}",
            f"keys[0].tier has a YAML tag (@4): expected {TIER}",
            f"keys[0].digest has a YAML tag (@5): expected {DIGEST}",
            f"keys[0].expires has a YAML tag (@6): expected {EXPIRES}",
        ],
    ),
    "wrong members": (
        f"keys:\n- id: web.{D1}\n  role: root\n  tier: fast\n  digest: {D1[:-1]}\n  expires: tomorrow\n",
        [
            f"keys[0].id has 68 characters (@2): expected {ID}",
            f"keys[0].role is root (@3): expected {ROLE}",
            f"keys[0].tier is fast (@4): expected {TIER}",
            f"keys[0].digest is not a digest (63 characters) (@5): expected {DIGEST}",
            f"keys[0].expires is tomorrow (@6): expected {EXPIRES}",
        ],
    ),
    "a token for an id": (
        f"keys: [{{id: web.secret, role: read, digest: {D1}}}]",
        [f"keys[0].id has '.' in it (@1): expected {ID}"],
    ),
    "the id of the environment": (
        f"keys: [{{id: API_KEY, role: read, digest: {D1}}}]",
        [f"keys[0].id is API_KEY, which is the key of the environment (@1): expected {ID}"],
    ),
    "a digest with other digits": (
        f"keys: [{{id: a, role: read, digest: g{D1[1:]}}}]",
        [f"keys[0].digest is not a digest (64 characters) (@1): expected {DIGEST}"],
    ),
    "digests in the wrong places": (
        f"keys: [{{id: é, role: {D1}, tier: {D1}, digest: web.secret, expires: {D1}}}]",
        [
            f"keys[0].id has '\\xe9' in it (@1): expected {ID}",
            f"keys[0].role is a text of 64 characters (@1): expected {ROLE}",
            f"keys[0].tier is a text of 64 characters (@1): expected {TIER}",
            f"keys[0].digest is not a digest (10 characters) (@1): expected {DIGEST}",
            f"keys[0].expires is a text of 64 characters (@1): expected {EXPIRES}",
        ],
    ),
    "unknown members": (
        f"keys:\n- id: a\n  role: read\n  digest: {D1}\n  rol: x\n  {D1}: x\n  ? [a]\n  : b\n  <<: {{id: b}}\n",
        [
            f"keys[0].rol is unknown (@5): {NAMES}; did you mean role?",
            f"keys[0].a text of 64 characters is unknown (@6): {NAMES}",
            f"keys[0] has a list for a name (@7): {NAMES}",
            f"keys[0].<< is unknown (@9): {NAMES}",
        ],
    ),
    "a member twice": (
        f"keys:\n- id: a\n  role: read\n  role: admin\n  digest: {D1}\n",
        ["keys[0].role is given twice (@4): expected once"],
    ),
    "an id twice": (
        f"keys:\n- {{id: a, role: read, digest: {D1}}}\n- {{id: a, role: read, digest: {D2}}}\n",
        ["keys[1].id is that of keys[0] (@3): expected a unique one"],
    ),
    "a digest twice": (
        f"keys:\n- {{id: a, role: read, digest: {D1}}}\n- {{id: b, role: read, digest: {D1.upper()}}}\n",
        ["keys[1].digest is that of keys[0] (@3): expected a unique one"],
    ),
    "an alias": (
        f"keys:\n- &a {{id: a, role: read, digest: {D1}}}\n- *a\n",
        [
            "keys[1].id is that of keys[0] (@2): expected a unique one",
            "keys[1].digest is that of keys[0] (@2): expected a unique one",
        ],
    ),
    "a list in itself": (
        "keys: &a [*a]\n",
        ["keys[0] is a list (@1): expected a section with id, role, tier, digest, expires"],
    ),
}


class TestMalformed:
    @pytest.mark.parametrize(("text", "expected"), MALFORMED.values(), ids=MALFORMED)
    def test_every_problem_names_its_line(self, file: Path, text: str, expected: list[str]) -> None:
        """All problems are listed in the order of the file, and none shows a digest."""
        written(file, text)

        assert [
            sentence.format(file=file) if "{file}" in sentence else sentence for sentence in expected
        ] == problems_of(file)

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("2027-01-31T00:00:00", "is 2027-01-31T00:00:00, which has no UTC offset"),
            ("2027-02-30", "is 2027-02-30, which does not exist"),
            ("2027-01-31T25:00:00Z", "is 2027-01-31T25:00:00Z, which does not exist"),
            ("0000-01-01", "is 0000-01-01, which does not exist"),
            ("2027-01-31T00:00Z", "is 2027-01-31T00:00Z"),
            ("20270131", "is 20270131"),
            ("2027-W05", "is 2027-W05"),
            ("31.01.2027", "is 31.01.2027"),
            ("2027-01-31Z", "is 2027-01-31Z"),
            ("1801353600", "is 1801353600"),
            ("never", "is never"),
            ("٢٠٢٧-٠١-٣١", "is ٢٠٢٧-٠١-٣١"),
        ],
    )
    def test_invalid_times_are_refused(self, file: Path, text: str, what: str) -> None:
        """A text that is not a time of RFC 3339 is refused, even if other software accepts it."""
        written(file, f"keys: [{{id: a, role: read, digest: {D1}, expires: {text}}}]")

        assert problems_of(file) == [f"keys[0].expires {what} (@1): expected {EXPIRES}"]

    def test_the_digest_of_api_key_is_refused(self, file: Path) -> None:
        """One token would otherwise open two keys."""
        written(file, f"keys: [{{id: web, role: read, digest: {D1}}}]")

        assert problems_of(file, "web.1") == ["keys[0].digest is that of API_KEY (@1): expected a unique one"]
        assert read(str(file), "web.2").problems == []

    def test_valid_keys_of_an_invalid_file_are_read(self, file: Path) -> None:
        """Reading continues after a problem, so that all problems are found at once."""
        written(file, f"keys:\n- {{id: a, role: x, digest: {D1}}}\n- {{id: b, role: read, digest: {D2}}}\n- 7\n")
        content = read(str(file), None)

        assert [key.id for key in content.keys] == ["b"]
        assert [problem.key for problem in content.problems] == ["keys[0].role", "keys[2]"]


class TestFile:
    def test_a_file_that_is_named_must_exist(self, tmp_path: Path) -> None:
        """The problem names the setting and the reason."""
        nowhere = tmp_path / "nowhere"

        assert problems_of(nowhere) == [
            (
                f"security.keys_path is {nowhere}, which cannot be read (No such file or directory): "
                "expected a YAML file of keys"
            )
        ]
        assert "cannot be read (Is a directory)" in problems_of(tmp_path)[0]

    def test_a_fifo_is_refused_without_waiting(self, file: Path) -> None:
        """A reload does not wait for a writer."""
        os.mkfifo(file)

        assert problems_of(file) == [f"security.keys_path is {file}, which is a FIFO: expected a YAML file of keys"]

    @pytest.mark.parametrize(("mode", "refused"), [(0o600, 0), (0o664, 0), (0o444, 0), (0o602, 1), (0o666, 1)])
    def test_a_world_writable_file_is_refused(self, file: Path, mode: int, refused: int) -> None:
        """Everybody could add a key to it. A file that everybody can read is accepted."""
        written(file, f"keys: [{{id: web, role: read, digest: {D1}}}]").chmod(mode)
        content = read(str(file), None)

        assert [
            (
                f"security.keys_path is {file}, which everybody can write to: expected a file that only owner and "
                "group can write to (chmod o-w)"
            )
        ] * refused == [problem.sentence for problem in content.problems]
        assert len(content.keys) == 1 - refused

    def test_a_link_is_judged_by_its_target(self, file: Path, tmp_path: Path) -> None:
        """Kubernetes mounts secrets as links; the mode of the link itself has no meaning."""
        written(tmp_path / "data", f"keys: [{{id: web, role: read, digest: {D1}}}]")
        file.symlink_to(tmp_path / "data")

        assert read(str(file), None).problems == []

    @pytest.mark.parametrize(
        "content",
        [
            b"\xff\xfe\x00",
            b"\x00",
            b"a: 1\n---\nb: 2",
            b"[" * 5000,
            b"#" * 2000000,
            b"keys: &a [*a",
            f"keys: [{{id: web, digest: {D1}: x\n".encode(),
            f"keys:\n- digest: '{D1}\n  x: @{D1}".encode(),
        ],
        ids=lambda content: repr(content[:16]),
    )
    def test_invalid_yaml_is_one_line_without_a_quotation(self, file: Path, content: bytes) -> None:
        """The parser's own message would quote the line, and the digest in it."""
        file.write_bytes(content)
        [problem] = problems_of(file)

        assert problem.startswith(f"security.keys_path is {file}, which is ")
        assert D1[:8] not in problem


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(),
        st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(st.dictionaries(st.sampled_from(["id", "role", "digest", "expires", "x"]), st.text())).map(
            lambda keys: ("keys:\n" + "".join(map(to_yaml_entry, keys))).encode("utf-8", "surrogatepass")
        ),
    )
)
@example(content=b"keys: [{expires: 9999-12-31T23:59:59-23:59, id: a, role: read, digest: x}]")
def test_any_bytes_are_keys_or_problems(file: Path, content: bytes) -> None:
    """Nothing is raised, and every problem is one printable line."""
    file.write_bytes(content)
    said = read(str(file), "k")

    assert said.keys or said.problems
    assert all(problem.sentence.isprintable() for problem in said.problems)


def test_the_largest_keys_file_is_within_the_size_limit() -> None:
    """The largest file that `mlsdm key` can make is smaller than the limit of a document."""
    largest = {
        "id": "x" * 64,
        "digest": "1" * 64,
        "role": "admin",
        "tier": "standard",
        "expires": "2027-01-31T00:00:00Z",
    }

    assert KEY_COUNT_MAX * len(to_yaml_entry(largest)) < yaml_document.SIZE_MAX
