"""Filters: what they select, and what words decide without the strings."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.reference.filter_words import (
    INTEGER_MAX,
    Condition,
    Filter,
    InvalidFilter,
    InvalidMetadata,
    Metadata,
    Operator,
    check_filter,
    check_metadata,
    decide,
    matches,
    word_of,
    words_of,
)

NAMES = ("a", "b", "c")


def one_hash(data: bytes) -> int:
    """Return a hash that tells names from each other, but no string from another."""
    return 1 + NAMES.index(data.decode()) if data.decode() in NAMES else 0


def fields(metadata: Metadata) -> dict[str, object]:
    """Return metadata as the fields of a filter."""
    return {f"metadata.{name}": value for name, value in metadata.items()}


def selects(operator: Operator, operand: object, **metadata: Any) -> bool:
    """Return whether one test on the member `a` selects metadata."""
    return matches(Filter(all=(Condition("metadata.a", ((operator, operand),)),)), fields(metadata))


scalars = (
    st.sampled_from([0, 1, 5, 5.0, -0.0, 0.5, True, False, "5", "true", "", "é", "e\u0301", INTEGER_MAX, -1e300])
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("5true", max_size=3)
)
numbers = scalars.filter(lambda value: not isinstance(value, bool | str))
tests = (
    st.tuples(st.just("eq"), scalars)
    | st.tuples(st.just("in"), st.lists(scalars, max_size=3).map(tuple))
    | st.tuples(st.just("exists"), st.booleans())
    | st.tuples(st.sampled_from(["gt", "gte", "lt", "lte"]), numbers)
)
conditions = st.builds(
    Condition, st.sampled_from(NAMES).map("metadata.{}".format), st.lists(tests, min_size=1, max_size=2).map(tuple)
)
filters = st.builds(Filter, *(st.lists(conditions, max_size=2).map(tuple) for _ in range(3)))
metadata_of_all_kinds = st.dictionaries(st.sampled_from(NAMES), scalars, max_size=3)


class TestMatches:
    @pytest.mark.parametrize(
        ("value", "operand", "equal"),
        [
            (5, 5, True),
            (5, 5.0, True),
            (0.0, -0.0, True),
            (5, "5", False),
            ("5", 5, False),
            (True, 1, False),
            (1, True, False),
            (True, "true", False),
            (False, 0, False),
            ("é", "e\u0301", False),  # one character or two: nothing is normalised
            ("A", "a", False),
            (INTEGER_MAX, INTEGER_MAX - 1, False),
        ],
    )
    def test_values_are_equal_only_within_a_kind(self, value: object, operand: object, equal: bool) -> None:
        """5 is 5.0, but neither "5" nor true; strings are compared by their bytes."""
        assert equal == selects("eq", operand, a=value)
        assert equal == selects("in", ("other", operand), a=value)

    @pytest.mark.parametrize("operator", ["gt", "gte", "lt", "lte"])
    @pytest.mark.parametrize("value", ["5", "6", True, False])
    def test_an_order_holds_for_numbers_only(self, operator: Operator, value: object) -> None:
        """A string or a boolean is neither above nor below a number."""
        assert selects(operator, 5, a=value) is False

    def test_orders(self) -> None:
        """They compare numbers, inclusive where they say so."""
        orders: tuple[Operator, ...] = ("lt", "lte", "gt", "gte")
        assert [selects(operator, 5, a=5) for operator in orders] == [False, True, False, True]
        assert [selects(operator, 5, a=4.5) for operator in orders] == [True, True, False, False]
        assert [selects(operator, 5, a=6) for operator in orders] == [False, False, True, True]

    @pytest.mark.parametrize(("operator", "operand"), [("eq", 5), ("in", (5,)), ("gt", 0), ("lte", 9)])
    def test_an_absent_member_meets_no_condition(self, operator: Operator, operand: object) -> None:
        """So `none` selects memories without the member."""
        condition = Condition("metadata.a", ((operator, operand),))
        assert not matches(Filter(all=(condition,)), {})
        assert not matches(Filter(any=(condition,)), {})
        assert matches(Filter(none=(condition,)), {})

    def test_exists(self) -> None:
        """It asks whether there is a value, whatever it is."""
        assert selects("exists", True, a=False)
        assert not selects("exists", True, b=1)
        assert selects("exists", False, b=1)

    def test_all_any_and_none(self) -> None:
        """All conditions of `all`, one of `any`, none of `none`; a condition holds if all of its tests do."""
        a, b = (Condition(f"metadata.{name}", (("gte", 1), ("lt", 2))) for name in "ab")
        assert matches(Filter(), {})
        assert matches(Filter(all=(a, b)), fields({"a": 1, "b": 1.5}))
        assert not matches(Filter(all=(a, b)), fields({"a": 1, "b": 2}))
        assert matches(Filter(any=(a, b)), fields({"a": 0, "b": 1}))
        assert not matches(Filter(any=(a, b)), fields({"a": 0}))
        assert not matches(Filter(none=(a, b)), fields({"a": 1, "b": 9}))


class TestDecide:
    @given(filters, metadata_of_all_kinds)
    def test_words_decide_what_the_filter_selects(self, condition: Filter, metadata: Metadata) -> None:
        """Or say that strings must be compared, which they do only if the hashes of two strings are equal."""
        check_filter(condition)
        decided = decide(condition, words_of(metadata, one_hash), one_hash)
        assert decided in (matches(condition, fields(metadata)), None)

    @given(filters, metadata_of_all_kinds)
    def test_without_strings_words_decide_everything(self, condition: Filter, metadata: Metadata) -> None:
        """Numbers, booleans and the presence of a member are in the words."""
        numeric = {name: value for name, value in metadata.items() if not isinstance(value, str)}
        assert matches(condition, fields(numeric)) == decide(condition, words_of(numeric, one_hash), one_hash)

    @example(0.0, -0.0)
    @given(scalars, scalars)
    def test_words_are_equal_as_values_are(self, one: Any, other: Any) -> None:
        """For all values but strings, which have a hash."""
        if not (isinstance(one, str) and isinstance(other, str)):
            assert selects("eq", other, a=one) == (word_of(one, one_hash) == word_of(other, one_hash))


class TestCheck:
    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"n": INTEGER_MAX + 1}, r"metadata\.n is 9007199254740993, an integer must be within ±2\^53"),
            ({"n": -INTEGER_MAX - 1}, r"metadata\.n is -9007199254740993"),
            ({"n": float("nan")}, r"metadata\.n is nan, a number must be finite"),
            ({"n": None}, r"metadata\.n is neither a string nor a number nor a boolean"),
            ({"n": [1]}, r"metadata\.n is neither"),
            ({str(i): i for i in range(17)}, "metadata has 17 members, at most 16 are allowed"),
        ],
    )
    def test_what_cannot_be_stored_exactly_is_refused(self, metadata: Any, message: str) -> None:
        """The message names the member."""
        with pytest.raises(InvalidMetadata, match=message):
            check_metadata(metadata)

    def test_the_largest_integers_are_stored(self) -> None:
        """Every integer up to 2^53 is a double."""
        check_metadata({"most": INTEGER_MAX, "least": -INTEGER_MAX, "float": 1e300})

    @pytest.mark.parametrize(
        ("operator", "operand", "message"),
        [
            ("gt", "5", "metadata.a: gt needs a number"),
            ("lte", True, "metadata.a: lte needs a number"),
            ("exists", 1, "metadata.a: exists needs true or false"),
            ("in", "abc", "metadata.a: in needs a list"),
            ("in", (None,), "metadata.a: in needs strings, numbers or booleans"),
            ("eq", None, "metadata.a: eq needs strings, numbers or booleans"),
            ("eq", INTEGER_MAX + 1, "eq: metadata.a is 9007199254740993"),
        ],
    )
    def test_an_operand_that_the_operator_cannot_use_is_refused(
        self, operator: Operator, operand: object, message: str
    ) -> None:
        """The message names field and operator."""
        with pytest.raises(InvalidFilter, match=message):
            check_filter(Filter(none=(Condition("metadata.a", ((operator, operand),)),)))
