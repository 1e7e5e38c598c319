"""Names of modules: the grammar of `modules.enabled` and `modules.required`."""

import re
from collections import Counter
from typing import Final

from core.settings.setting import InvalidText, quote_if_needed

# A child is called `<module>-<its name>`, in at most 32 characters; `-migrations` is the longest that the server adds.
NAME_LENGTH_MAX: Final = 20
EXPECTED: Final = (
    f"names of 1 to {NAME_LENGTH_MAX} lower-case letters, digits and single _ between them, each beginning with a "
    "letter, separated by commas"
)
# Two _ separate the parts of a variable: MLSDM_A__B__C is `b__c` of `a`, and not `c` of a module `a__b`.
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


def is_name(text: object) -> bool:
    """Return whether this is a module's name."""
    return isinstance(text, str) and len(text) <= NAME_LENGTH_MAX and _NAME.fullmatch(text) is not None


def parse(text: str) -> tuple[str, ...]:
    """Return the names that `text` lists, separated by commas; () when it is empty.

    Raises InvalidText, which lists every item that is not a name and every name that occurs twice.
    """
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    faults = [_fault(item, count) for item, count in Counter(items).items() if count > 1 or not is_name(item)]
    if faults:
        raise InvalidText("has " + "; ".join(faults))
    return tuple(items)


def _fault(item: str, count: int) -> str:
    if not item:
        return "an empty item"
    return f"{quote_if_needed(item)} {count} times" if count > 1 else f"{quote_if_needed(item)}, which is not a name"
