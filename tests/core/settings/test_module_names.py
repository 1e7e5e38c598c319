"""Names of modules: what `modules.enabled` and `modules.required` take."""

import pytest

from core.settings.module_names import parse
from core.settings.setting import InvalidText
from core.startup import ConfigurationError, load


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (" ", ()),
        ("openapi", ("openapi",)),
        ("storage, archive,text_2", ("storage", "archive", "text_2")),
        ("a" * 20, ("a" * 20,)),
        ("a_1_b", ("a_1_b",)),
    ],
)
def test_names_are_separated_by_commas(text: str, expected: tuple[str, ...]) -> None:
    """Blanks around a name are ignored, and an empty text is no name."""
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("archive,", "has an empty item"),
        ("Archive", "has Archive, which is not a name"),
        ("1st", "has 1st, which is not a name"),
        ("a-b,a b", "has a-b, which is not a name; 'a b', which is not a name"),
        ("a" * 21, f"has {'a' * 21}, which is not a name"),
        ("archive,text,archive", "has archive 2 times"),
        ("a__b,a_", "has a__b, which is not a name; a_, which is not a name"),
    ],
)
def test_every_wrong_item_is_named(text: str, finding: str) -> None:
    """One refusal lists all items that are not names and all that occur twice."""
    with pytest.raises(InvalidText) as refusal:
        parse(text)

    assert str(refusal.value) == finding


def test_a_section_of_the_core_is_not_a_module() -> None:
    """A module's settings are a section with its name, so the name must be free."""
    with pytest.raises(ConfigurationError) as refusal:
        load(None, {"MLSDM_MODULES__ENABLED": "openapi,recall"})

    [problem] = refusal.value.problems
    assert problem.startswith(
        "modules.enabled has recall, which the core uses for settings of its own (MLSDM_MODULES__ENABLED): expected "
    )
