"""One setting: a leaf of the configuration, read from its annotated type.

The annotation is the only place that has its range, unit, meaning and restart reason; refusals, the comments of the
YAML files and the tables of the documentation quote it.

Values arrive as text, from a file or a variable, and `Setting.parse` reads both by one grammar. Integers are not
switches, switches are not integers, and no spelling gives NaN or infinity: every number has two bounds, and NaN is
within no bounds. A free text has its range in words, and a pattern or a check that enforces it.
Rejected: YAML's typing, which reads `1e-3` as text, `22:22` as 1342, `010` as 8 and `no` as false.
"""

import re
import reprlib
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

Value = bool | int | float | str

# ASCII only: int() and float() alone would take "٣", " 3 " and "nan".
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SWITCH = {"0": False, "1": True, "false": False, "true": True}
_SHOWN_LENGTH_MAX = 60  # characters of an operator's text quoted in a refusal


class InvalidText(ValueError):
    """A text has no valid value. `str()` is the finding that follows the key: `has a, which is not an address`."""


class Setting(msgspec.Struct, frozen=True):
    """A setting: its dotted key, the field's `Annotated` type, and the embedded default."""

    key: str
    annotation: Any
    default: Value

    def parse(self, text: str) -> Value:
        """Return the value that `text` stands for.

        Raises ValueError when the text has no value of this type within its range, and its subclass InvalidText where
        the reason has details.
        """
        return self.validate(self._decode(text.strip()))

    def validate(self, value: object) -> Value:
        """Return `value`, an int as a float where the type is float. Raises ValueError for a wrong type or range."""
        try:
            valid: Value = msgspec.convert(value, self.annotation)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error
        if check := self._meta.extra["check"]:
            check(valid)
        return valid

    def _decode(self, text: str) -> Value:
        if self.type is bool:
            if text.lower() not in _SWITCH:
                raise ValueError(text)
            return _SWITCH[text.lower()]
        if self.type in (int, float):
            if not (_WHOLE_NUMBER if self.type is int else _NUMBER).fullmatch(text):
                raise ValueError(text)
            number: int | float = self.type(text)
            return number
        for choice in self.choices:  # names are matched whatever their case: LOG_LEVEL=debug is common
            if text.lower() == choice.lower():
                return choice
        return text

    @property
    def type(self) -> Any:
        """bool, int, float, str or a Literal."""
        return get_args(self.annotation)[0]

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def unit(self) -> str:
        unit: str = self._meta.extra["unit"]
        return unit

    @property
    def restart_reason(self) -> str:
        """Why only a restart can change the setting; "" when a reload can."""
        reason: str = self._meta.extra["restart"]
        return reason

    @property
    def description(self) -> str:
        description: str = self._meta.description
        return description

    @property
    def range(self) -> str:
        """The range in words: `a whole number from 2 to 4096`, `a number above 0, at most 1`, `one of time, events`."""
        if words := self._meta.extra["words"]:
            return str(words)
        if self.type is bool:
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        noun = "a whole number" if self.type is int else "a number"
        if self._meta.gt is not None:
            return f"{noun} above {self._meta.gt}, at most {self._meta.le}"
        return f"{noun} from {self._meta.ge} to {self._meta.le}"

    @property
    def variable(self) -> str:
        """The environment variable that overrides it: `moral_filter.ema_alpha` → `MLSDM_MORAL_FILTER__EMA_ALPHA`."""
        return "MLSDM_" + self.key.upper().replace(".", "__")

    @property
    def _meta(self) -> Any:
        return get_args(self.annotation)[1]


def describe(
    description: str,
    unit: str,
    words: str = "",
    check: Callable[[str], object] | None = None,
    restart: str = "",
    **bounds: Any,
) -> msgspec.Meta:
    """Return the annotation of a setting: its meaning in one sentence, its unit, and the bounds of msgspec.

    A number has two bounds (ge or gt, and le). A free text has its range in `words`, and a pattern or a `check` that
    raises InvalidText. `restart` is the reason why only a restart can change the setting, as a clause for "because".
    """
    extra = {"unit": unit, "words": words, "check": check, "restart": restart}
    return msgspec.Meta(description=description, extra=extra, **bounds)


class SettingProblem(NamedTuple):
    """A problem of one key: a sentence that names the key, the finding, its place and what was expected."""

    key: str
    sentence: str


def quoted(text: str) -> str:
    """Return `text` in quotes for a refusal: on one line, printable and short."""
    shown = reprlib.Repr()
    shown.maxstring = _SHOWN_LENGTH_MAX
    return shown.repr(text)


def quote_if_needed(name: str) -> str:
    """Return what an operator wrote, in quotes if it has blanks, is long, or could break the line or the terminal."""
    return name if name.isprintable() and " " not in name and len(name) <= _SHOWN_LENGTH_MAX else quoted(name)


def suggestion(name: str, known: Collection[str], separator: str = ".") -> str:
    """Return `; did you mean …?` with the known name closest to `name`, in whole or in its last part; "" if none is."""
    name = name[: 2 * _SHOWN_LENGTH_MAX]  # the comparison is quadratic in the length
    # Among names with the same last part the first declared wins: it is the outermost.
    last_parts = {candidate.rsplit(separator, 1)[-1]: candidate for candidate in reversed([*known])}
    last_part = name.rsplit(separator, 1)[-1]
    if last_part in last_parts:
        return f"; did you mean {last_parts[last_part]}?"
    import difflib  # noqa: PLC0415 - only a refusal needs it

    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]}?"
    if close := difflib.get_close_matches(last_part, last_parts, n=1):
        return f"; did you mean {last_parts[close[0]]}?"
    return ""
