"""One setting: a leaf of the configuration tree, with everything there is to know about it.

A `Setting` is read off the annotated type in `core.settings.config`, so the type is the only place that spells a range,
a unit or a meaning; the refusals, the comments of the YAML files and the table of the documentation all quote it from
here.

Every value that an operator can give, in a file or in a variable, arrives as text and goes through `Setting.parse`.
One grammar for both was chosen over YAML's own typing, which reads `1e-3` as text, `22:22` as 1342, `010` as 8 and
`no` as false. Integers do not pass for true, true does not pass for 1, and no spelling yields NaN or infinity: every
number has two bounds, and NaN lies within none. A free text says in words what it may be, and has a pattern or a check
that enforces them.

A `Layer` is what one source (an overlay, a file, the environment) says: values by dotted key, and the problems met on
the way. Sources never raise; they report, so that one refusal can list everything that is wrong.
"""

import difflib
import re
import reprlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

Value = bool | int | float | str

# ASCII only: int() and float() alone would take "٣", " 3 " and "nan".
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SWITCH = {"0": False, "1": True, "false": False, "true": True}
_SHOWN_LENGTH_MAX = 60  # characters of an operator's text quoted in a refusal


class InvalidText(ValueError):
    """What is wrong with a text, as a sentence's verb and object: `has 10.0.0.300, which is no address`."""


class Setting(msgspec.Struct, frozen=True):
    """A leaf of the tree: its dotted key, the field's `Annotated` type, and the embedded default."""

    key: str
    annotation: Any
    default: Value

    def parse(self, text: str) -> Value:
        """Return the value that `text` spells.

        Raises ValueError when the text has no value of this type within its range, and its subclass InvalidText where
        the reason has details.
        """
        return self.validate(self._decode(text.strip()))

    def validate(self, value: object) -> Value:
        """Return `value`, an int as the float that is wanted; raise ValueError if its type or range does not fit."""
        try:
            admitted: Value = msgspec.convert(value, self.annotation)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error
        if check := self._meta.extra["check"]:
            check(admitted)
        return admitted

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
    description: str, unit: str, words: str = "", check: Callable[[str], object] | None = None, **bounds: Any
) -> msgspec.Meta:
    """Return a leaf's annotation: its meaning in a sentence, its unit, msgspec's bounds (ge, gt, le, pattern …).

    A free text gives its range in `words`, and a `check` that raises InvalidText where no pattern says what they say.
    """
    return msgspec.Meta(description=description, extra={"unit": unit, "words": words, "check": check}, **bounds)


class SettingProblem(NamedTuple):
    """What is wrong with one key, as a sentence that names it, says what was given and what was expected."""

    key: str
    sentence: str


class Layer(NamedTuple):
    """What one source says: admitted values by dotted key, and its problems."""

    values: dict[str, Value]
    problems: list[SettingProblem]

    def parse(self, setting: Setting, text: str, origin: str) -> None:
        """Admit `text` for `setting` or note why not. `origin` tells the operator where it stands."""
        try:
            self.values[setting.key] = setting.parse(text)
        except InvalidText as error:
            self.reject(setting, str(error), origin)
        except ValueError:
            self.reject(setting, f"is {quote_if_needed(text)}" if text.strip() else "is empty", origin)

    def reject(self, setting: Setting, what: str, origin: str) -> None:
        """Note that `setting` was given something of the wrong kind."""
        expected = f"expected {setting.range} (unit: {setting.unit})"
        self.problems.append(SettingProblem(setting.key, f"{setting.key} {what} ({origin}): {expected}"))

    def report(self, key: str, sentence: str) -> None:
        self.problems.append(SettingProblem(key, sentence))


def settings_of(tree: type[msgspec.Struct], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a tree of structs in the order in which they are declared. Every field has a default."""
    hints = get_type_hints(tree, include_extras=True)
    defaults = tree()
    for field in tree.__struct_fields__:
        if isinstance(hints[field], type) and issubclass(hints[field], msgspec.Struct):
            yield from settings_of(hints[field], f"{prefix}{field}.")
        else:
            yield Setting(prefix + field, hints[field], getattr(defaults, field))


def to_yaml_scalar(value: Value) -> str:
    """Return `value` as a configuration file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def quoted(text: str) -> str:
    """Return `text` for a refusal: on one line, printable, and never long."""
    shown = reprlib.Repr()
    shown.maxstring = _SHOWN_LENGTH_MAX
    return shown.repr(text)


def quote_if_needed(name: str) -> str:
    """Return what an operator wrote; quoted only where it could be misread or would break the line or the terminal."""
    return name if name.isprintable() and " " not in name and len(name) <= _SHOWN_LENGTH_MAX else quoted(name)


def suggestion(name: str, known: Collection[str], separator: str = ".") -> str:
    """Return `; did you mean …?` with the known name nearest to `name`, whole or by its last part; "" if none is."""
    name = name[: 2 * _SHOWN_LENGTH_MAX]  # the comparison is quadratic in the length
    # Of names that end alike the first declared is meant: it is the one that stands nearest to the top.
    last_parts = {candidate.rsplit(separator, 1)[-1]: candidate for candidate in reversed([*known])}
    last_part = name.rsplit(separator, 1)[-1]
    if last_part in last_parts:
        return f"; did you mean {last_parts[last_part]}?"
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]}?"
    if close := difflib.get_close_matches(last_part, last_parts, n=1):
        return f"; did you mean {last_parts[close[0]]}?"
    return ""
