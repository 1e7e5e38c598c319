"""Sections that modules declare: read, judged and refused together with the settings of the core."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import settings_manual
from core.settings.config import SETTINGS, Config
from core.settings.setting import Setting, Value, describe
from core.settings.tree import settings_of, values_of
from core.settings.yaml_document import to_yaml_scalar
from core.startup import ConfigurationError, Loaded, Sections, load, unreloadable


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The queue of the archive."""

    low: Annotated[int, describe("The lower mark.", "entries", ge=0, le=100)] = 10
    high: Annotated[int, describe("The upper mark.", "entries", ge=0, le=100)] = 20

    def contradictions(self) -> Iterator[str]:
        if not self.low < self.high:
            yield "{low} < {high}"


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """What the module archive declares."""

    when_behind: Annotated[Literal["refuse", "continue"], describe("What happens to events.", "name")] = "refuse"
    wait: Annotated[float, describe("The longest wait.", "seconds", gt=0, le=60)] = 1.0
    path: Annotated[str, describe("The directory.", "path", "a path", restart="the files are open", max_length=100)] = (
        "data"
    )
    queue: Queue = Queue()


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """What the module text declares."""

    enabled: Annotated[bool, describe("Whether it runs.", "switch")] = True


SECTIONS: Sections = {"archive": Archive, "text": Text}


def sections_of(enabled: tuple[str, ...]) -> Sections:
    """Return the sections of all modules; refuse a module that has none, `openapi` excepted."""
    if unknown := [name for name in enabled if name not in (*SECTIONS, "openapi")]:
        raise ConfigurationError([f"modules.enabled has {name}: expected one of archive, text" for name in unknown])
    return SECTIONS


def load_sections(text: str, path: Path, environ: Mapping[str, str] | None = None) -> Loaded:
    path.write_text(text)
    return load(str(path), environ or {}, (), sections_of)


def problems_of(text: str, path: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the problems of a configuration that must be refused."""
    with pytest.raises(ConfigurationError) as refusal:
        load_sections(text, path, environ)
    return refusal.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


class TestSections:
    def test_a_section_has_its_defaults(self) -> None:
        """Every section that is known has its values, even when its module is not enabled."""
        loaded = load(None, {}, (), sections_of)

        assert loaded.sections == {"archive": Archive(), "text": Text()}
        assert loaded.config == Config()

    def test_file_and_variables(self, file: Path) -> None:
        """A section is read like one of the core: file, then variables."""
        loaded = load_sections(
            "modules: {enabled: archive}\narchive: {when_behind: Continue, wait: 2, queue: {low: 5}}\n",
            file,
            {"MLSDM_ARCHIVE__WAIT": "3", "MLSDM_ARCHIVE__QUEUE__HIGH": "6", "MLSDM_TEXT__ENABLED": "false"},
        )

        assert loaded.sections == {
            "archive": Archive(when_behind="continue", wait=3.0, queue=Queue(low=5, high=6)),
            "text": Text(enabled=False),
        }
        assert loaded.values()["archive.queue.high"] == 6

    def test_the_section_of_a_module_that_is_left_out_is_not_judged(self, file: Path) -> None:
        """Nothing is known of it; what is wrong elsewhere is still reported."""
        file.write_text("archive: {anything: 1}\ncapacity: 1\n")
        variables = {"MLSDM_ARCHIVE__OTHER": "2", "MLSDM_TEXT__OTHER": "2"}
        with pytest.raises(ConfigurationError) as refusal:
            load(str(file), variables, (), lambda _enabled: {"archive": None, "text": Text})
        names = [problem.split()[0] for problem in refusal.value.problems]

        assert sorted(names) == ["MLSDM_TEXT__OTHER", "capacity"]

    def test_the_enabled_modules_are_passed_on(self, file: Path) -> None:
        """Those of the file, or of the variable, which overrides it; those of the default when the value is refused."""
        asked: list[tuple[str, ...]] = []

        def remember(enabled: tuple[str, ...]) -> Sections:
            asked.append(enabled)
            return {}

        file.write_text("modules: {enabled: 'text, archive'}\n")
        load(None, {}, (), remember)
        load(str(file), {}, (), remember)
        load(str(file), {"MLSDM_MODULES__ENABLED": "archive"}, (), remember)
        with pytest.raises(ConfigurationError):
            load(str(file), {"MLSDM_MODULES__ENABLED": "a,,b"}, (), remember)
        file.write_text("modules: {enabled: ''}\n")
        load(str(file), {}, (), remember)

        assert asked == [("openapi",), ("text", "archive"), ("archive",), ("text", "archive"), ()]

    def test_all_problems_at_once(self, file: Path) -> None:
        """Those of the core, of the sections, of the variables and of the relations, each with its place."""
        where = f"{file}, line"
        problems = problems_of(
            "capacity: 1\narchive:\n  when_behind: wait\n  wait: 0\n  queue: {low: 30}\n  pth: x\ntxt: {}\n",
            file,
            {"MLSDM_TEXT__ENABLED": "maybe", "MLSDM_ARCHIV__WAIT": "1"},
        )
        at_top = ", ".join(sorted((*Config.__struct_fields__, "archive", "text")))

        assert problems == [
            f"capacity is 1 ({where} 1): expected a whole number from 100 to 1000000 (unit: slots)",
            f"archive.when_behind is wait ({where} 3): expected one of refuse, continue (unit: name)",
            f"archive.wait is 0 ({where} 4): expected a number above 0, at most 60 (unit: seconds)",
            (
                f"archive.pth is unknown ({where} 6): expected one of path, queue, wait, when_behind; "
                "did you mean archive.path?"
            ),
            f"txt is unknown ({where} 7): expected one of {at_top}",
            "MLSDM_ARCHIV__WAIT is unknown: expected MLSDM_<SECTION>__<KEY>; did you mean MLSDM_ARCHIVE__WAIT?",
            "text.enabled is maybe (MLSDM_TEXT__ENABLED): expected true or false (unit: switch)",
            "archive.queue.low is 30, archive.queue.high is 20: expected archive.queue.low < archive.queue.high",
        ]

    def test_an_unknown_module_does_not_hide_other_problems(self, file: Path) -> None:
        """The sections of the known modules are read all the same, and none of them is unknown."""
        assert problems_of("modules: {enabled: 'archive,texte'}\ntext: {enabled: 3}\n", file) == [
            f"text.enabled is 3 ({file}, line 2): expected true or false (unit: switch)",
            "modules.enabled has texte: expected one of archive, text",
        ]

    def test_a_module_with_the_name_of_a_core_section_is_refused(self) -> None:
        """Its settings would be those of the core."""
        with pytest.raises(ConfigurationError) as refusal:
            load(None, {}, (), lambda _enabled: {"recall": Text, "archive": Archive})

        assert refusal.value.problems == [
            "the module recall has the name of a section of the core: expected a module with another name"
        ]

    def test_a_required_module_must_be_enabled(self, file: Path) -> None:
        """A module that is not loaded could never become ready."""
        assert problems_of("modules: {enabled: archive, required: 'text,archive'}\n", file) == [
            (
                "modules.required is text,archive, modules.enabled is archive: "
                "expected all names in modules.required among those in modules.enabled"
            )
        ]

    def test_settings_that_need_a_restart(self, file: Path) -> None:
        """A section names them with the reason, as the core does."""
        was = load_sections("archive: {path: a, wait: 1}\n", file)
        wanted = load_sections("archive: {path: b, wait: 2}\n", file)

        assert list(unreloadable(was.values(), wanted).values()) == [
            "archive.path cannot change from a to b while the server runs, because the files are open: restart it"
        ]


class TestManual:
    def test_the_files_hold_the_sections(self, file: Path) -> None:
        """The annotated file loads to the defaults, and the document has a table for each section."""
        for environment in ("development", "production"):
            loaded = load_sections(settings_manual.yaml_file(environment, SECTIONS), file)

            assert loaded.sections == {"archive": Archive(), "text": Text()}
        document = settings_manual.markdown(SECTIONS)
        for line in (
            "### `archive`\n\nWhat the module archive declares.\n",
            "### `archive.queue`\n",
            "| `path` | `data` | a path | path | The directory. *Restart.* |\n",
            "| `high` | `20` | a whole number from 0 to 100 | entries | The upper mark. |\n",
        ):
            assert line in document


# -- sections by chance ------------------------------------------------------------------------------------------------
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,7}", fullmatch=True).filter(lambda name: "__" not in name)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20).map(str.strip).filter(lambda text: "\0" not in text)


@st.composite
def leaves(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Value]]:
    """Return the annotation of a setting and the values within its range."""
    kind = draw(st.sampled_from([int, float, bool, Literal, str]))
    if kind is int:
        low = draw(st.integers(-1000, 1000))
        high = draw(st.integers(low, 2000))
        return Annotated[int, describe("A number.", "items", ge=low, le=high)], st.integers(low, high)
    if kind is float:
        low_ratio = draw(st.floats(-1e6, 1e6))
        high_ratio = draw(st.floats(low_ratio, 2e6))
        annotation = Annotated[float, describe("A number.", "ratio", ge=low_ratio, le=high_ratio)]
        return annotation, st.floats(low_ratio, high_ratio)
    if kind is bool:
        return Annotated[bool, describe("A switch.", "switch")], st.booleans()
    if kind is Literal:
        choices = tuple(draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)))
        return Annotated[Literal[choices], describe("A choice.", "name")], st.sampled_from(choices)
    return Annotated[str, describe("A text.", "text", "any text", max_length=20)], TEXTS


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> tuple[type[msgspec.Struct], dict[str, st.SearchStrategy[Value]]]:
    """Return a section and, by dotted key below it, the values that its settings can have."""
    members: list[tuple[str, Any, object]] = []
    strategies: dict[str, st.SearchStrategy[Value]] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        if depth and draw(st.booleans()):
            section, below = draw(trees(depth - 1))
            members.append((name, section, section()))
            strategies |= {f"{name}.{key}": strategy for key, strategy in below.items()}
        else:
            annotation, values = draw(leaves())
            members.append((name, annotation, draw(values)))
            strategies[name] = values
    tree = msgspec.defstruct("Section", members, frozen=True, kw_only=True)
    tree.__doc__ = "A section."
    return tree, strategies


MODULES = st.sampled_from(["zebra", "archive", "a1"])


def as_yaml(values: Mapping[str, Value]) -> str:
    """Return a document with these values, each spelled by `to_yaml_scalar`."""
    lines: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for key, value in values.items():
        *sections, name = key.split(".")
        for depth in range(len(sections)):
            if (section := tuple(sections[: depth + 1])) not in seen:
                seen.add(section)
                lines.append("  " * depth + f"{section[-1]}:")
        lines.append("  " * len(sections) + f"{name}: {to_yaml_scalar(value)}")
    return "\n".join(lines) + "\n"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=MODULES, declared=trees())
def test_any_section_is_read_from_a_file_and_from_variables(
    file: Path, data: st.DataObject, name: str, declared: tuple[type[msgspec.Struct], dict[str, Any]]
) -> None:
    """Both ways give the same values; so do both together, each with a part of them."""
    tree, strategies = declared
    values = {f"{name}.{key}": data.draw(strategy) for key, strategy in strategies.items()}
    by_key = {setting.key: setting for setting in settings_of(tree, f"{name}.")}
    variables = {by_key[key].variable: str(value) for key, value in values.items() if str(value)}
    nested = sorted(values, key=lambda key: (key.rpartition(".")[0], key))
    file.write_text(as_yaml({key: values[key] for key in nested}), encoding="utf-8")

    from_file = load(str(file), {}, (), lambda _enabled: {name: tree})
    assert values_of(from_file.sections[name], f"{name}.") == values
    both = load(str(file), variables, (), lambda _enabled: {name: tree})
    assert both.sections == from_file.sections


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=MODULES, declared=trees())
def test_every_wrong_value_is_reported_with_key_place_and_range(
    file: Path, data: st.DataObject, name: str, declared: tuple[type[msgspec.Struct], dict[str, Any]]
) -> None:
    """All of them in one refusal, and nothing else is in it."""
    tree, _ = declared
    all_settings = list(settings_of(tree, f"{name}."))
    wrong: list[Setting] = data.draw(st.lists(st.sampled_from(all_settings), unique_by=lambda leaf: leaf.key))
    file.write_text(yaml.safe_dump({"capacity": 1}))
    environ = {setting.variable: too_much(setting) for setting in wrong}
    with pytest.raises(ConfigurationError) as refusal:
        load(str(file), environ, (), lambda _enabled: {name: tree})
    [capacity, *problems] = refusal.value.problems

    assert capacity.startswith(f"capacity is 1 ({file}, line 1): expected {SETTINGS['capacity'].range}")
    assert sorted(problems) == sorted(
        f"{setting.key} is {too_much(setting)} ({setting.variable}): expected {setting.range} (unit: {setting.unit})"
        for setting in wrong
    )


def too_much(setting: Setting) -> str:
    """Return a text that is no value of `setting`."""
    return "9" * 30 if setting.type in (bool, int, float) else "?" * 30
