"""Filters, reference version: which memories a filter selects, and what the words in the block decide about it.

A memory has a word per member of its metadata: a keyed hash of the name, the kind of the value, and 64 bits. The bits
are the value itself for numbers and booleans, and a keyed hash for strings. So words decide everything but whether two
strings with equal hashes are equal; then the bytes are compared.

Invariants: `decide` is None only where `matches` has to read the bytes of a string; otherwise the two are equal, under
every hash.
"""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

Scalar = bool | int | float | str
Metadata = Mapping[str, Scalar]
Hash = Callable[[bytes], int]  # keyed with the secret of the block; 64 bits
Operator = Literal["eq", "in", "exists", "gt", "gte", "lt", "lte"]

MEMBERS_MAX: Final = 16
INTEGER_MAX: Final = 2**53  # every integer up to this one is a double


class InvalidMetadata(Exception):
    """Metadata that cannot be stored; the message names the member, what was wrong and what was expected."""


class InvalidFilter(Exception):
    """A filter that cannot be evaluated; the message names the field, what was wrong and what was expected."""


class Word(NamedTuple):
    """The value of a member: `bits` are those of a double, 0 or 1 for a boolean, a keyed hash for a string."""

    kind: Literal["number", "boolean", "string"]
    bits: int


class Condition(NamedTuple):
    """One condition on one field. `tests` are pairs of operator and operand; the condition holds when all of them do.

    Operands: a scalar for `eq`, a tuple of scalars for `in`, a boolean for `exists`, a number for the other four.
    """

    field: str
    tests: tuple[tuple[Operator, object], ...]


class Filter(NamedTuple):
    """Selects what meets every condition of `all`, one of `any`, and no condition of `none`; empty ones ask nothing."""

    all: tuple[Condition, ...] = ()
    any: tuple[Condition, ...] = ()
    none: tuple[Condition, ...] = ()


def check_metadata(metadata: Metadata) -> None:
    """Raise InvalidMetadata unless the metadata can be stored exactly."""
    if len(metadata) > MEMBERS_MAX:
        raise InvalidMetadata(f"metadata has {len(metadata)} members, at most {MEMBERS_MAX} are allowed")
    for name, value in metadata.items():
        if isinstance(value, bool | str):
            continue
        if not isinstance(value, int | float):
            raise InvalidMetadata(f"metadata.{name} is neither a string nor a number nor a boolean")
        if isinstance(value, int) and abs(value) > INTEGER_MAX:
            raise InvalidMetadata(f"metadata.{name} is {value}, an integer must be within ±2^53")
        if not math.isfinite(value):
            raise InvalidMetadata(f"metadata.{name} is {value}, a number must be finite")


def check_filter(condition: Filter) -> None:
    """Raise InvalidFilter unless every operand is what its operator needs."""
    for field, tests in condition.all + condition.any + condition.none:
        for operator, operand in tests:
            if operator == "exists":
                if not isinstance(operand, bool):
                    raise InvalidFilter(f"{field}: exists needs true or false")
            elif operator == "in":
                if not isinstance(operand, tuple):
                    raise InvalidFilter(f"{field}: in needs a list")
                for one in operand:
                    _check_operand(field, operator, one)
            else:
                _check_operand(field, operator, operand)


def _check_operand(field: str, operator: Operator, operand: object) -> None:
    if operator not in ("eq", "in") and not _is_number(operand):
        raise InvalidFilter(f"{field}: {operator} needs a number")
    if not isinstance(operand, bool | int | float | str):
        raise InvalidFilter(f"{field}: {operator} needs strings, numbers or booleans")
    if field.startswith("metadata."):
        try:
            check_metadata({field.removeprefix("metadata."): operand})
        except InvalidMetadata as error:
            raise InvalidFilter(f"{operator}: {error}") from error


def word_of(value: Scalar, hashed: Hash) -> Word:
    """Return the word of a value. Equal numbers have equal words: 5 and 5.0, 0.0 and -0.0."""
    if isinstance(value, bool):
        return Word("boolean", int(value))
    if isinstance(value, str):
        return Word("string", hashed(value.encode()))
    return Word("number", struct.unpack("<Q", struct.pack("<d", float(value) + 0.0))[0])  # -0.0 + 0.0 is 0.0


def words_of(metadata: Metadata, hashed: Hash) -> dict[int, Word]:
    """Return the words of metadata by the hash of their names, which must differ."""
    return {hashed(name.encode()): word_of(value, hashed) for name, value in metadata.items()}


# -- the definition --


def matches(condition: Filter, values: Mapping[str, object]) -> bool:
    """Return whether a filter selects a memory whose fields have these values; fields without a value are absent."""
    return (
        all(_holds(test, values) for test in condition.all)
        and (not condition.any or any(_holds(test, values) for test in condition.any))
        and not any(_holds(test, values) for test in condition.none)
    )


def _holds(condition: Condition, values: Mapping[str, object]) -> bool:
    value = values.get(condition.field)
    return all(_passes(operator, operand, value) for operator, operand in condition.tests)


def _passes(operator: Operator, operand: object, value: object) -> bool:
    """Return whether a value, None if it is absent, passes one test."""
    if operator == "exists":
        return (value is not None) == operand
    if value is None:
        return False
    if operator == "eq":
        return _equal(value, operand)
    if operator == "in":
        assert isinstance(operand, tuple)
        return any(_equal(value, one) for one in operand)
    return _is_number(value) and _is_number(operand) and _compare(operator, value, operand)


def _equal(one: object, other: object) -> bool:
    """Return whether two scalars are the same: of one kind, and equal. 5 equals 5.0, but neither "5" nor true."""
    return _kind(one) == _kind(other) and one == other


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "string"


def _is_number(value: object) -> bool:
    return _kind(value) == "number"


def _compare(operator: Operator, value: object, operand: object) -> bool:
    assert isinstance(value, int | float)
    assert isinstance(operand, int | float)
    if operator == "gt":
        return value > operand
    if operator == "gte":
        return value >= operand
    return value < operand if operator == "lt" else value <= operand


# -- what the words decide --


def decide(condition: Filter, words: Mapping[int, Word], hashed: Hash) -> bool | None:
    """Return what the words say about a filter on members of the metadata; None if strings must be compared."""
    return _all(
        [_all([_decided(test, words, hashed) for test in condition.all])]
        + ([_any([_decided(test, words, hashed) for test in condition.any])] if condition.any else [])
        + [_not(_any([_decided(test, words, hashed) for test in condition.none]))]
    )


def _decided(condition: Condition, words: Mapping[int, Word], hashed: Hash) -> bool | None:
    word = words.get(hashed(condition.field.removeprefix("metadata.").encode()))
    return _all([_decided_test(operator, operand, word, hashed) for operator, operand in condition.tests])


def _decided_test(operator: Operator, operand: object, word: Word | None, hashed: Hash) -> bool | None:
    if operator == "exists":
        return (word is not None) == operand
    if word is None:
        return False
    if operator == "eq":
        return _same(word, operand, hashed)
    if operator == "in":
        assert isinstance(operand, tuple)
        return _any([_same(word, one, hashed) for one in operand])
    if word.kind != "number" or not _is_number(operand):
        return False
    value: float = struct.unpack("<d", struct.pack("<Q", word.bits))[0]
    return _compare(operator, value, operand)


def _same(word: Word, operand: object, hashed: Hash) -> bool | None:
    assert isinstance(operand, bool | int | float | str)
    if word != word_of(operand, hashed):
        return False
    return None if word.kind == "string" else True


# Three-valued logic: None is "not decided yet".


def _all(parts: list[bool | None]) -> bool | None:
    return False if False in parts else None if None in parts else True


def _any(parts: list[bool | None]) -> bool | None:
    return True if True in parts else None if None in parts else False


def _not(part: bool | None) -> bool | None:
    return None if part is None else not part
