"""Filters, compiled for the block: which memories a recall selects, as the native core reads it.

Owns: the compiled form (`struct mlsdm_filter` in native/api.h). core/reference/filter_words.py is the definition of
what a filter selects; `matches` there and `mlsdm_recall` select the same memories.
Invariants: all comparisons of numbers become comparisons of integers. A double is ordered like its key, the integer of
its bits with the lower 63 inverted if it is negative; a time or an id is an integer already, and an operand that lies
between two integers is rounded to the side that changes nothing.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from shm._native import ffi, lib
from shm.metadata import BOOLEAN, INTEGER_MAX, NUMBER, STRING, Hash, Scalar, bits_of
from shm.records import FilterPointer

CONDITIONS_MAX: Final = 32  # each is evaluated for each memory
OPERANDS_MAX: Final = 1024  # of all conditions together; they are searched, not walked
MEMBER: Final = "metadata."
OPERATORS: Final = ("eq", "in", "exists", "gt", "gte", "lt", "lte")

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_FIELDS: Final = {
    "created_at": lib.MLSDM_FIELD_CREATED_AT,
    "updated_at": lib.MLSDM_FIELD_UPDATED_AT,
    "memory_id": lib.MLSDM_FIELD_MEMORY_ID,
    "moral_value": lib.MLSDM_FIELD_MORAL_VALUE,
    "phase": lib.MLSDM_FIELD_PHASE,
    "id": lib.MLSDM_FIELD_ID,
}
_INTEGERS: Final = ("created_at", "updated_at", "memory_id")
_PHASES: Final = {"wake": 0, "sleep": 1}  # as core.phases

Test = tuple[str, object]
OwnIdWords = Callable[[str], Iterable[int]]  # own id → the first word of its hash in each namespace that is asked


class InvalidFilter(ValueError):
    """A filter that cannot be evaluated; the message names the field, what was wrong and what was expected."""


class FilterLike(Protocol):
    """A filter: three groups of conditions. A condition is a field and its tests, pairs of operator and operand."""

    @property
    def all(self) -> Sequence[tuple[str, Sequence[Test]]]:
        """The conditions of which each must hold."""

    @property
    def any(self) -> Sequence[tuple[str, Sequence[Test]]]:
        """The conditions of which one must hold, unless there are none."""

    @property
    def none(self) -> Sequence[tuple[str, Sequence[Test]]]:
        """The conditions of which none may hold."""


class _Operand(NamedTuple):
    """One value that a field is compared with; `octets` of a string. Sorted by `word`."""

    word: int
    kind: int
    octets: bytes = b""


class CompiledFilter:
    """A filter that the native core can evaluate. Immutable; any thread may use it."""

    def __init__(self, condition: FilterLike, hashed: Hash, own_id_words: OwnIdWords) -> None:
        """`hashed` is the hash of the block. Raises InvalidFilter."""
        groups = (condition.all, condition.none, condition.any)  # in this order: the cheaper answers first
        total = sum(len(group) for group in groups)
        if total > CONDITIONS_MAX:
            raise InvalidFilter(f"filter has {total} conditions, at most {CONDITIONS_MAX} are allowed")
        conditions: list[tuple[int, ...]] = []
        tests: list[tuple[int, ...]] = []
        operands: list[tuple[int, ...]] = []
        octets = bytearray()
        for field, given in (one for group in groups for one in group):
            number, name = _field(field, hashed)
            compiled = list(_tests(field, given, hashed, own_id_words))
            conditions.append((number, len(tests), len(compiled), 0, name))
            for operator, low, high, values in compiled:
                tests.append((operator, len(operands), len(values), 0, low, high))
                for word, kind, text in sorted(values):
                    operands.append((word, kind, len(octets), len(text), 0))
                    octets += text
        if len(operands) > OPERANDS_MAX:
            raise InvalidFilter(
                f"filter has {len(operands)} values to compare with, at most {OPERANDS_MAX} are allowed"
            )
        # The structure holds bare pointers: the arrays live as long as this object.
        self._arrays = (
            ffi.new("struct mlsdm_condition[]", conditions),
            ffi.new("struct mlsdm_test[]", tests),
            ffi.new("struct mlsdm_operand[]", operands),
            ffi.new("uint8_t[]", bytes(octets)),
        )
        self.pointer: FilterPointer = ffi.new(
            "struct mlsdm_filter *", (*(len(group) for group in groups), 0, *self._arrays)
        )


def _field(field: str, hashed: Hash) -> tuple[int, int]:
    """Return the number of a field, and the hash of a member's name."""
    if field.startswith(MEMBER):
        try:
            return lib.MLSDM_FIELD_MEMBER, hashed(field.removeprefix(MEMBER).encode())
        except UnicodeEncodeError:
            shown = field.encode(errors="backslashreplace").decode()
            raise InvalidFilter(f"{shown} has a lone surrogate, which UTF-8 cannot encode") from None
    if field not in _FIELDS:
        raise InvalidFilter(f"{field} is no field of a memory, expected {MEMBER}* or one of {', '.join(_FIELDS)}")
    return _FIELDS[field], 0


def _tests(
    field: str, given: Sequence[Test], hashed: Hash, own_id_words: OwnIdWords
) -> Iterable[tuple[int, int, int, list[_Operand]]]:
    """Yield the tests of a condition: operator, range and operands. The four orders together are one range."""
    low, high, ordered = _INT64_MIN, _INT64_MAX, False
    for operator, operand in given:
        if operator not in OPERATORS:
            raise InvalidFilter(f"{field}: {operator} is no operator, expected one of {', '.join(OPERATORS)}")
        if operator == "exists":
            if not isinstance(operand, bool):
                raise InvalidFilter(f"{field}: exists needs true or false")
            yield lib.MLSDM_OPERATOR_EXISTS if operand else lib.MLSDM_OPERATOR_ABSENT, 0, 0, []
        elif operator in ("eq", "in"):
            values = [operand] if operator == "eq" else operand
            if not isinstance(values, tuple | list):
                raise InvalidFilter(f"{field}: in needs a list")
            found = [one for value in values for one in _operands(field, operator, value, hashed, own_id_words)]
            yield lib.MLSDM_OPERATOR_AMONG, 0, 0, found
        else:
            least, most = _range(field, operator, operand)
            low, high, ordered = max(low, least), min(high, most), True
    if ordered:
        yield lib.MLSDM_OPERATOR_RANGE, *((low, high) if low <= high else (1, 0)), []


def _operands(field: str, operator: str, value: object, hashed: Hash, own_id_words: OwnIdWords) -> Iterable[_Operand]:
    """Yield what a value is compared with. Nothing for a value that the field never has."""
    value = _checked(field, operator, value)
    if field == "phase":
        if isinstance(value, str) and value in _PHASES:
            yield _Operand(_PHASES[value], BOOLEAN)
    elif field == "id":
        if isinstance(value, str):
            for word in own_id_words(value):
                yield _Operand(word, STRING, value.encode())
    elif field in _INTEGERS:
        if (
            not isinstance(value, bool | str)
            and (isinstance(value, int) or value.is_integer())
            and _INT64_MIN <= int(value) <= _INT64_MAX
        ):
            yield _Operand(int(value) % 2**64, NUMBER)
    elif isinstance(value, str):
        yield _Operand(hashed(value.encode()), STRING, value.encode())
    elif isinstance(value, bool):
        yield _Operand(int(value), BOOLEAN)
    else:
        double = _double(value)
        if double == value:
            yield _Operand(_key(double) % 2**64, NUMBER)


def _range(field: str, operator: str, operand: object) -> tuple[int, int]:
    """Return the smallest and the largest integer of a field that passes a test of order; (1, 0) if none does."""
    if isinstance(operand, bool) or not isinstance(operand, int | float):
        raise InvalidFilter(f"{field}: {operator} needs a number")
    _checked(field, operator, operand)
    if isinstance(operand, float) and math.isnan(operand):
        return 1, 0
    if field not in _INTEGERS:
        above = below = _key(_double(operand))
    elif operand in (math.inf, -math.inf):
        above = below = _INT64_MAX + 1 if operand > 0 else _INT64_MIN - 1
    else:
        above, below = math.floor(operand), math.ceil(operand)
    if operator == "gt":
        low, high = above + 1, _INT64_MAX
    elif operator == "gte":
        low, high = below, _INT64_MAX
    elif operator == "lt":
        low, high = _INT64_MIN, below - 1
    else:
        low, high = _INT64_MIN, above
    low, high = max(low, _INT64_MIN), min(high, _INT64_MAX)
    return (low, high) if low <= high else (1, 0)


def _checked(field: str, operator: str, value: object) -> Scalar:
    """Return a value. Raises InvalidFilter for one that is no scalar, or that no member can have."""
    if not isinstance(value, bool | int | float | str):
        raise InvalidFilter(f"{field}: {operator} needs strings, numbers or booleans")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidFilter(f"{field}: {operator} has a lone surrogate, which UTF-8 cannot encode") from None
    elif field.startswith(MEMBER):
        if isinstance(value, int) and abs(value) > INTEGER_MAX:
            raise InvalidFilter(f"{field}: {operator} is {value}, an integer must be within ±2^53")
        if not math.isfinite(value):
            raise InvalidFilter(f"{field}: {operator} is {value}, a number must be finite")
    return value


def _double(value: float) -> float:
    """Return a number as a double, infinity if it is larger than every double."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _key(number: float) -> int:
    """Return the integer by which a double is ordered: signed, 64 bits."""
    bits: int = struct.unpack("<q", struct.pack("<Q", bits_of(number)))[0]
    return bits ^ (bits >> 63 & _INT64_MAX)
